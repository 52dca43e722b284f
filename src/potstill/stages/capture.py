"""capture: write down what a teacher says at every token of sealed conversations, to learn from it again and again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.artifact import ROWS_FILE, digest, hash_file, storage_errors
from potstill.errors import DataError, RecipeError, Stopped
from potstill.records import Dropped
from potstill.sources import Data, EndpointModel, Inputs, Mixture, Model
from potstill.stages.base import Expected, Facts, LocalModelName, ModelName, Reference, Stage, Work
from potstill.stages.kept import EXAMPLES_FILE, SIGNALS_FOLDER, TOKENIZER_FOLDER, KeepsSignals, Kept
from potstill.stages.training import chats_as_items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from potstill.signals.files import Key
    from potstill.signals.rows import Header, RowSignal
    from potstill.training.batch import Item
    from potstill.training.capture import Asked
    from potstill.training.data import Split
    from potstill.training.scoring import Scorer

Tell = Callable[[int, int], None]
"""Hears (tokens done, tokens to do)."""
EXAMPLES = 16
"""Rows whose tokens are noted, for `show`."""


class CaptureConfig(KeepsSignals):
    """A teacher's distributions and hidden states at every learnt token, on disk: a teacher is then read once for all
    epochs, students and losses.

    Kept are the largest entries of each distribution, with what all others have together; or a random sample of it,
    whose gradient is right on average and which costs fewer bytes; or both. A sample serves forward_kl alone.
    """

    kind: Literal["capture"]
    teacher: ModelName
    """Who is asked: a model whose weights are at hand; or one behind an endpoint that gives the log-probabilities of a
    prompt's tokens, as vLLM does. Of that `top` alone can be had, at temperature 1, and `student` names its tokens."""
    student: LocalModelName | None = None
    """Whose template is asked for: rows are written with this model's chat template, in tokens that have to be the
    teacher's. Unset: with the teacher's own."""
    data: Annotated[Mixture, Reference(("chats",))]
    """The conversations, or several sources of them. Each row is captured once, whatever its source's weight: which of
    them an epoch takes is for the stage that learns to say."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of the longest conversation that is kept as it is; as in the stage that learns from it."""
    on_long: Literal["drop", "cut"] = "drop"
    """A longer conversation is left out, or loses whole turns at its end until it fits. Both are counted."""
    learn: Literal["assistant", "all"] = "assistant"
    """Ask at what assistants say and the token that ends it, or at every token; as in the stage that learns from it."""
    top: int = Field(default=0, ge=0, le=1 << 16)
    """How many of the largest entries are kept."""
    draws: int = Field(default=0, ge=0, le=1 << 12)
    """How many draws are made, of those entries that are not kept by `top`; 50 are about 12 different ones."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """The teacher's logits are divided by it; as in the stage that learns from it."""
    layers: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Whose hidden states are kept: 1 is the first decoder layer's output, the number of layers the last's."""
    width: int | None = Field(default=None, ge=1)
    """To how many numbers each hidden state is projected at random; unset: none is lost. A student learns nothing of
    what lies in the directions that are not kept: the fewer there are, the less of a layer is taught."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, then MPS, then the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in; auto: bfloat16 where the hardware has it."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens read at once."""

    HOW = frozenset({"device", "micro_batch_tokens"})

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        if not (self.top or self.draws or self.layers):
            raise ValueError("nothing would be kept; set draws: 50, or top, or layers")
        if self.width is not None and not self.layers:
            raise ValueError("width is for hidden states, and no layers are kept; set layers")
        return self

    def kept(self) -> Kept:
        return Kept(self.top, self.draws, self.temperature, self.layers, self.learn)

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        (teacher,) = models["teacher"]
        if not isinstance(teacher.spec, EndpointModel):
            return
        behind = f"'{teacher.name}' is behind an endpoint"
        if self.student is None:
            what = f"{behind}, and its tokenizer is not at hand"
            raise RecipeError("student", what, "Name a model that has a path and the same tokens")
        wrong = {"draws": self.draws, "layers": self.layers, "temperature": self.temperature != 1}
        for name in (name for name, given in wrong.items() if given):
            what = f"{behind}, which gives the likeliest tokens at temperature 1 alone"
            raise RecipeError(name, what, f"Leave {name} out, and set top")
        for name in sorted(self.model_fields_set & {"device", "dtype", "micro_batch_tokens"}):
            raise RecipeError(name, f"{behind}, which computes as it likes", f"Leave {name} out")
        if teacher.spec.batch:
            raise RecipeError("teacher", f"{behind} by batch jobs, which are for chats", "Set batch: false for it")

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        count, tokens = rows.get("data", 0), rows.get("data.tokens", 500)
        if rows.get("teacher.endpoints"):
            return Expected(rows=count, calls=count, tokens=(tokens + 1) * count, prompt_share=tokens / (tokens + 1))
        return Expected(rows=count, tokens=tokens * count)


def run(config: CaptureConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, read the teacher, write shard by shard. What a run that was stopped has written stays."""
    from potstill.signals.files import Reader
    from potstill.stages.classroom import refuse_other_tokens
    from potstill.training.models import load_tokenizer
    from potstill.training.tokens import Store

    teacher = inputs.model("teacher")
    behind_endpoint = isinstance(teacher.spec, EndpointModel)
    tokenizer = load_tokenizer(inputs.model("student") if config.student is not None else teacher)
    if config.student is not None and not behind_endpoint:
        refuse_other_tokens(tokenizer, load_tokenizer(teacher), teacher.name)
    split = chats_as_items(config, inputs, tokenizer, work.seed, Store(work.workspace))
    with work.stoppable() as stopping:

        def tell(done: int, total: int) -> None:
            work.progress(done, total, "tokens")
            if stopping() and done < total:
                where = f"token {done:,} of {total:,}"
                raise Stopped(where, "the capture was asked to stop", "Run again to go on there")

        from_teacher = _from_endpoint if behind_endpoint else _from_weights
        facts, split = from_teacher(config, inputs, work, tokenizer, split, tell)
    with storage_errors(work.path):
        shutil.copytree(work.state / SIGNALS_FOLDER, work.path / SIGNALS_FOLDER, copy_function=_linked)
    tokenizer.save_pretrained(work.path / TOKENIZER_FOLDER, save_jinja_files=False)
    _note_examples(split.train[:EXAMPLES], work.path / EXAMPLES_FILE)
    work.drop(split.dropped)
    size = Reader(work.path / SIGNALS_FOLDER).bytes_per_token()
    return {**split.facts(), "bytes_per_token": round(size, 2), **facts}


def _from_weights(
    config: CaptureConfig, inputs: Inputs, work: Work, tokenizer: "PreTrainedTokenizerBase", split: "Split", tell: Tell
) -> "tuple[Facts, Split]":
    """Of a model that is at hand; how it was computed."""
    from potstill.signals.files import Writer
    from potstill.training.capture import capture
    from potstill.training.memory import memory_errors
    from potstill.training.models import choose_device, choose_precision, load_model, load_tokenizer
    from potstill.training.probe import check_positions
    from potstill.training.scoring import build_scorer

    device, teacher = choose_device(config.device), inputs.model("teacher")
    model = load_model(teacher, load_tokenizer(teacher), device)
    model.requires_grad_(False)
    check_positions(model, split.train)
    scorer = build_scorer(model, choose_precision(config.dtype, device)).narrow()
    header, asked = _asked(config, inputs, scorer, tokenizer, work.seed)
    writer = Writer(work.state / SIGNALS_FOLDER, header)
    with memory_errors(config.micro_batch_tokens):
        capture(scorer, split.train, asked, writer, config.micro_batch_tokens, tell)
    return scorer.facts(), split


def _from_endpoint(
    config: CaptureConfig, inputs: Inputs, work: Work, tokenizer: "PreTrainedTokenizerBase", split: "Split", tell: Tell
) -> "tuple[Facts, Split]":
    """Of a model behind one. Rows that it could not be asked about are left out, with its words."""
    import numpy as np

    from potstill.signals.files import Writer
    from potstill.signals.rows import Header
    from potstill.teachers.client import Endpoint
    from potstill.teachers.logprobs import read_signal, scoring_request
    from potstill.training.capture import keep_all
    from potstill.training.preflight import tokenizer_hash
    from potstill.training.tellers import key_of

    teacher = inputs.model("teacher")
    spec, vocabulary = teacher.spec, 1 + max(tokenizer.get_vocab().values())
    assert isinstance(spec, EndpointModel), "it was chosen by that"
    top = min(config.top, vocabulary)
    named = f"{spec.name}@{spec.revision}"
    header = Header(
        vocabulary, top, 0, 1.0, (), False, named, tokenizer_hash(tokenizer), _content_of(inputs.data["data"])
    )
    writer, unserved = Writer(work.state / SIGNALS_FOLDER, header), dict[str, Dropped]()
    with Endpoint(teacher, work.account) as endpoint:

        def read(shard: "Sequence[Item]") -> "Iterator[tuple[Key, RowSignal]]":
            texts = [item.answers[0] for item in shard]
            requests = (scoring_request(ids_L.tolist(), top) for ids_L, _ in texts)
            for item, (ids_L, learn_L), reply in zip(shard, texts, endpoint.complete(requests), strict=True):
                if reply.finish == "error":
                    unserved[item.row] = Dropped(id=item.row, reason="unserved", detail=reply.reason)
                    continue
                places = np.flatnonzero(learn_L).tolist()
                yield key_of(item), read_signal(reply, ids_L.tolist(), places, top, vocabulary)

        keep_all(split.train, read, writer, tell)
    if len(unserved) == len(split.train):
        first = next(iter(unserved.values()))
        what = (
            f"no row could be captured: {len(unserved):,} of {len(unserved):,} were refused; the first: {first.detail}"
        )
        raise DataError(f"teacher {teacher.name}", what, "Mend the endpoint or its options, and run again")
    return {"signal_of": named}, split.without(unserved)


def _asked(
    config: CaptureConfig, inputs: Inputs, scorer: "Scorer", tokenizer: "PreTrainedTokenizerBase", seed: int
) -> "tuple[Header, Asked]":
    """What is written down, and what stands at its head."""
    from potstill.signals.rows import Header, HiddenLayer
    from potstill.signals.states import sketch
    from potstill.stages.classroom import width_of
    from potstill.training.capture import Asked
    from potstill.training.layers import check_layers, decoder_layers
    from potstill.training.preflight import tokenizer_hash, vocabulary_of
    from potstill.training.reference import weights_hash

    blocks, whole = len(decoder_layers(scorer.model)), width_of(scorer)
    check_layers(config.layers, blocks, "the teacher")
    layers = sorted(set(config.layers))
    width = min(config.width or whole, whole)
    vocabulary = vocabulary_of(scorer.model, tokenizer, f"teacher {config.teacher}")
    header = Header(
        vocabulary=vocabulary,
        top=min(config.top, vocabulary),
        draws=config.draws,
        temperature=config.temperature,
        hidden=tuple(HiddenLayer(layer, width, of=blocks, whole=whole, seed=seed) for layer in layers),
        target_logp=False,
        teacher=weights_hash(scorer.model, scorer.precision),
        tokenizer=tokenizer_hash(tokenizer),
        data=_content_of(inputs.data["data"]),
    )
    sketches = {layer: sketch(seed, layer, whole, width) for layer in layers}
    return header, Asked(vocabulary, header.top, header.draws, config.temperature, False, sketches, seed)


def _note_examples(items: "Sequence[Item]", path: Path) -> None:
    """Their tokens, which a signal knows by a hash alone: so that a person may read it."""
    from potstill.training.tellers import key_of

    lines = []
    for item in items:
        row, tokens_hash = key_of(item)
        tokens = [int(token) for ids_L, learn_L in item.answers for token in ids_L[learn_L]]
        lines.append(json.dumps({"row": row, "hash": tokens_hash, "tokens": tokens}, ensure_ascii=False) + "\n")
    with storage_errors(path):
        path.write_text("".join(lines), encoding="utf-8")


def _content_of(sources: Sequence[Data]) -> str:
    """A hash of the rows themselves, wherever they lie."""
    files = [(data.name, data.path if data.path.is_file() else data.path / ROWS_FILE) for data in sources]
    return digest([[name, hash_file(path)] for name, path in files])


def _linked(source: str, target: str) -> str:
    """Shards are large, and nobody changes one: what is sealed and what was kept until then may be one file."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target


STAGE = Stage(config=CaptureConfig, produces="signals", run=run, version=2, trains=True)
