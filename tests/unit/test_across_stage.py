"""A teacher of another family, vocabulary and template teaches a student: by lessons on batches, and as a stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import Gradients, gradients_of, say
from tokenizer_families import CHATML, byte_level, metaspace
from torch import Tensor
from training_stages import CHATS, PRETRAIN, SFT, TEXTS, Bench, curve
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.objectives.cross_tokenizer import Shared
from potstill.sources import Data, Model
from potstill.stages import distill, pretrain, sft
from potstill.tokens.alignment import align, shared_tokens
from potstill.tokens.learnt import learnt_turns
from potstill.training.across import Interpreter, Read, SpanAims, span_lessons
from potstill.training.batch import Item, micro_batches
from potstill.training.scoring import Scorer, build_scorer

SAID = [
    say("user: what?", "assistant: the cat sat on the mat 😀"),
    say("user: so?", "assistant: it is a cat", "user: no", "assistant: hello there"),
]


def made(config: Any, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


class Two:
    """A student and a teacher of another family and vocabulary, and what both read."""

    def __init__(self, theirs: PreTrainedTokenizerFast | None = None) -> None:
        self.ours, self.theirs = byte_level(300), theirs or metaspace(420, CHATML)
        size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 4}
        size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
        self.student = made(MistralConfig(**size, vocab_size=len(self.ours), sliding_window=None), 0)
        self.teacher = made(LlamaConfig(**size, vocab_size=len(self.theirs)), 1)
        both = zip(learnt_turns(self.ours, SAID), learnt_turns(self.theirs, SAID), strict=True)
        self.items, self.reads = [], {}
        for row, ((encoded, turns), (their_encoded, their_turns)) in enumerate(both):
            item = Item.chat(f"row{row}", encoded)
            self.items.append(item)
            spans = align(turns, their_turns, item.row)
            self.reads[item.row] = Read.of(item, Item.chat(item.row, their_encoded), spans)

    def interpreter(self) -> Interpreter:
        shared = Shared.of(
            *map(torch.from_numpy, shared_tokens(self.ours, self.theirs)), len(self.ours), len(self.theirs)
        )
        return Interpreter(build_scorer(self.teacher).eval(), len(self.theirs), self.reads, shared)

    def learnt(self, scorer: Scorer, aims: SpanAims, budget: int = 1000) -> tuple[float, Gradients]:
        teach = span_lessons(aims, [self.interpreter()])

        def loss() -> Tensor:
            return torch.stack([scorer(teach(batch))[0].sum() for batch in micro_batches(self.items, budget)]).sum()

        return gradients_of(self.student, loss)


@pytest.mark.parametrize(("name", "temperature"), [("uld", 1.0), ("gold", 1.0), ("alm", 100.0)])
def test_loss_and_gradient_do_not_depend_on_micro_batches(name: Any, temperature: float):
    two = Two()
    scorer = build_scorer(two.student)
    aims = SpanAims(name, len(two.ours), temperature, likelihood_weight=0.3)
    whole, cut = two.learnt(scorer, aims), two.learnt(scorer, aims, budget=1)
    assert whole[0] > 0
    assert cut[0] == pytest.approx(whole[0], rel=1e-6)
    for parameter, gradient in whole[1].items():
        assert (cut[1][parameter] - gradient).norm() <= 1e-6 * gradient.norm()


@pytest.mark.parametrize(("name", "temperature"), [("uld", 1.0), ("gold", 1.0), ("alm", 2.0)])
def test_gradients_are_the_slopes_of_the_loss(name: Any, temperature: float):
    """Against a step of finite size along the gradient, in float64: what follows a span's first token moves too."""
    two = Two()
    scorer = build_scorer(two.student)
    aims = SpanAims(name, len(two.ours), temperature)
    value, gradients = two.learnt(scorer, aims)
    norm = float(torch.stack([g.pow(2).sum() for g in gradients.values()]).sum().sqrt())
    step = 1e-4 / norm  # transformers' norms pass through float32, whatever the model is in
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, gradient in gradients.items():
                two.student.get_parameter(parameter).add_(sign * step * gradient)
        ends.append(two.learnt(scorer, aims)[0])
        with torch.no_grad():
            for parameter, gradient in gradients.items():
                two.student.get_parameter(parameter).sub_(sign * step * gradient)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm**2, rel=5e-3)
    assert value > 0


@pytest.mark.parametrize("name", ["uld", "gold", "alm"])
def test_a_twin_with_the_same_tokens_has_nothing_to_teach(name: Any):
    """Trap: Cross-tokenizer alignment off by one span (TRL 5885, 5905)."""
    two = Two(byte_level(300))
    two.teacher = two.student
    aims = SpanAims(name, len(two.ours), 1.0 if name != "alm" else 100.0)
    loss, gradients = two.learnt(build_scorer(two.student), aims)
    assert loss == pytest.approx(0, abs=1e-9)
    assert all(gradient.norm() < 1e-7 for gradient in gradients.values())


@pytest.mark.parametrize(("name", "temperature"), [("uld", 1.0), ("gold", 1.0), ("alm", 100.0)])
@pytest.mark.parametrize("capped", [False, True], ids=["plain", "capped"])
def test_rows_that_pad_a_vocabulary_take_part_in_nothing(name: Any, temperature: float, capped: bool):
    """Trap: Teacher and student vocabularies padded to different sizes: slice to the tokenizer, never zeros."""
    plain, padded = Two(), Two()
    if capped:
        plain.student.config.final_logit_softcapping = padded.student.config.final_logit_softcapping = 3.0
    aims = SpanAims(name, len(plain.ours), temperature, likelihood_weight=0.3)
    for model, fill in ((padded.student, 64), (padded.teacher, 32)):
        model.resize_token_embeddings(model.config.vocab_size + fill, mean_resizing=False)
        with torch.no_grad():
            model.get_output_embeddings().weight[-fill:].normal_(0, 0.3)
    (loss, gradients), (found, slopes) = (two.learnt(Scorer(two.student), aims) for two in (plain, padded))
    assert found == pytest.approx(loss, rel=1e-6)
    for parameter, gradient in gradients.items():
        assert (slopes[parameter][: len(gradient)] - gradient).norm() <= 1e-6 * gradient.norm()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def chats(bench: Bench) -> Data:
    return bench.data("chats", "chats", CHATS)


@pytest.fixture(scope="module")
def teacher(bench: Bench, chats: Data) -> Model:
    """Of another vocabulary and shape than the student's."""
    config = {**PRETRAIN, "vocabulary": 420, "width": 48, "heads": 4}
    base = bench.run(pretrain, "their-base", config, bench.data("texts", "texts", TEXTS))[0]
    return bench.run(sft, "teacher", {**SFT, "model": "their-base"}, chats, base)[0]


@pytest.fixture(scope="module")
def base(bench: Bench) -> Model:
    return bench.run(pretrain, "base", PRETRAIN, bench.data("texts", "texts", TEXTS))[0]


STEPS: dict[str, Any] = {"model": "base", "teacher": "teacher", "data": "chats", "epochs": 6, "learning_rate": 1e-2,
                         "global_batch": 8, "held_out": 6, "dtype": "float32"}  # fmt: skip


@pytest.mark.parametrize(("name", "likelihood"), [("uld", 1.0), ("gold", 1.0), ("alm", 0.0)])
def test_a_teacher_of_another_vocabulary_teaches(
    bench: Bench, base: Model, teacher: Model, chats: Data, name: str, likelihood: float
):
    """By how likely spans are alone, held-out answers become likelier though nobody asked for their likelihood. What
    compares first tokens' distributions stands beside the likelihood, as in the papers: a teacher with longer tokens
    has little to say for the student's shorter ones."""
    config = {**STEPS, "divergence": name, "likelihood_weight": likelihood}
    model, facts = bench.teach(distill, f"by-{name}", config, chats, base, teacher)
    rows = curve(model, "held_out")
    assert rows[-1]["divergence"] < 0.75 * rows[0]["divergence"]
    assert rows[-1]["nll"] < 0.5 * rows[0]["nll"]
    assert facts["teachers"]["teacher"]["aligned_tokens"] > 0.9 * facts["learnt_tokens"]
    shown = (Path(model.local.path) / "alignment.txt").read_text()
    assert shown.splitlines()[0].split() == ["student", base.name, "~", "teacher", "teacher"]
    assert shown.rstrip().endswith("end")


def test_other_tokens_are_refused_by_what_compares_token_by_token(
    bench: Bench, base: Model, teacher: Model, chats: Data
):
    """Trap: Same size is not same vocabulary: compare id-to-token maps."""
    with pytest.raises(PotstillError, match=r"its tokens are not the student's: .*divergence: uld, gold or alm"):
        bench.teach(distill, "refused", STEPS, chats, base, teacher)


def test_rows_that_no_teacher_can_read_whole_are_said(bench: Bench, base: Model, chats: Data):
    """Each is counted; where none is left, or none to measure on, the stage says so instead of going on without."""
    config = {**PRETRAIN, "vocabulary": 420, "width": 48, "heads": 4, "context": 16}
    short = bench.run(pretrain, "short", config, bench.data("texts", "texts", TEXTS))[0]
    with pytest.raises(PotstillError, match="no row is left to train on: 48 are too long for a teacher"):
        bench.teach(distill, "refused", {**STEPS, "teacher": "short", "divergence": "alm"}, chats, base, short)
