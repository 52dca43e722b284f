"""capture: write down what a teacher says at every token of sealed conversations, to learn from it again and again."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.artifact import ROWS_FILE, digest, hash_file, storage_errors
from potstill.errors import Stopped
from potstill.records import Chat
from potstill.sources import Data, Inputs, Mixture
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, Work
from potstill.stages.kept import EXAMPLES_FILE, SIGNALS_FOLDER, TOKENIZER_FOLDER, KeepsSignals, Kept
from potstill.stages.training import named_rows, sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from potstill.signals.rows import Header
    from potstill.training.batch import Item
    from potstill.training.capture import Asked
    from potstill.training.scoring import Scorer

EXAMPLES = 16
"""Rows whose tokens are noted, for `show`."""


class CaptureConfig(KeepsSignals):
    """A teacher's distributions and hidden states at every learnt token, on disk: a teacher is then read once for all
    epochs, students and losses.

    Kept are the largest entries of each distribution, with what all others have together; or a random sample of it,
    whose gradient is right on average and which costs fewer bytes; or both. A sample serves forward_kl alone.
    """

    kind: Literal["capture"]
    teacher: LocalModelName
    """Who is asked: a model whose weights are at hand."""
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
    temperature: float = Field(default=1.0, gt=0, le=100)
    """The teacher's logits are divided by it; as in the stage that learns from it."""
    layers: tuple[int, ...] = ()
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

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        count = rows.get("data", 0)
        return Expected(rows=count, tokens=500 * count)


def run(config: CaptureConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, read the teacher, write shard by shard. What a run that was stopped has written stays."""
    from potstill.signals.files import Reader, Writer
    from potstill.stages.classroom import refuse_other_tokens
    from potstill.training.capture import capture
    from potstill.training.data import chat_items
    from potstill.training.memory import memory_errors
    from potstill.training.models import choose_device, choose_precision, load_model, load_tokenizer
    from potstill.training.probe import check_positions
    from potstill.training.scoring import build_scorer
    from potstill.training.tokens import Store

    device = choose_device(config.device)
    teacher = inputs.model("teacher")
    own = load_tokenizer(teacher)
    tokenizer = own
    if config.student is not None:
        tokenizer = load_tokenizer(inputs.model("student"))
        refuse_other_tokens(tokenizer, own, teacher.name)
    split = chat_items(
        tokenizer,
        named_rows(inputs, Chat),
        max_length=config.max_length,
        on_long=config.on_long,
        learn=config.learn,
        held_out=0,
        seed=work.seed,
        where=sources(inputs),
        store=Store(work.workspace),
    )
    model = load_model(teacher, own, device)
    model.requires_grad_(False)
    check_positions(model, split.train)
    scorer = build_scorer(model, choose_precision(config.dtype, device)).narrow()
    header, asked = _asked(config, inputs, scorer, tokenizer, work.seed)
    writer = Writer(work.state / SIGNALS_FOLDER, header)
    with work.stoppable() as stopping, memory_errors(config.micro_batch_tokens):

        def tell(done: int, total: int) -> None:
            work.progress(done, total, "tokens")
            if stopping() and done < total:
                where = f"token {done:,} of {total:,}"
                raise Stopped(where, "the capture was asked to stop", "Run again to go on there")

        capture(scorer, split.train, asked, writer, config.micro_batch_tokens, tell)
    with storage_errors(work.path):
        shutil.copytree(work.state / SIGNALS_FOLDER, work.path / SIGNALS_FOLDER, copy_function=_linked)
    tokenizer.save_pretrained(work.path / TOKENIZER_FOLDER, save_jinja_files=False)
    _note_examples(split.train[:EXAMPLES], work.path / EXAMPLES_FILE)
    work.drop(split.dropped)
    reader = Reader(work.path / SIGNALS_FOLDER)
    facts = split.facts()
    return {**facts, "bytes_per_token": round(reader.bytes_per_token(), 2), **scorer.facts()}


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
        data=digest([[data.name, _content(data)] for data in inputs.data["data"]]),
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


def _content(data: Data) -> str:
    """Of the rows themselves, wherever they lie."""
    return hash_file(data.path if data.path.is_file() else data.path / ROWS_FILE)


def _linked(source: str, target: str) -> str:
    """Shards are large, and nobody changes one: what is sealed and what was kept until then may be one file."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target


STAGE = Stage(config=CaptureConfig, produces="signals", run=run, trains=True)
