"""capture and distill as stages: a toy student learns from a toy teacher, by its weights and by what was captured."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from training_stages import CHATS, PRETRAIN, SFT, TEXTS, Bench, curve

from potstill.artifact import seal
from potstill.errors import PotstillError
from potstill.objectives import divergence
from potstill.recipe import load_recipe
from potstill.signals.files import Reader
from potstill.sources import Data, Model
from potstill.stages import capture, distill, init, pretrain, sft
from potstill.training.across import AcrossName

STEPS: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-2, "global_batch": 8, "held_out": 6, "dtype": "float32"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def base(bench: Bench) -> Model:
    return bench.run(pretrain, "base", PRETRAIN, bench.data("texts", "texts", TEXTS))[0]


@pytest.fixture(scope="module")
def chats(bench: Bench) -> Data:
    return bench.data("chats", "chats", CHATS)


@pytest.fixture(scope="module")
def teacher(bench: Bench, base: Model, chats: Data) -> Model:
    return bench.run(sft, "teacher", SFT, chats, base)[0]


def distilled(bench: Bench, out: str, base: Model, teacher: Model | Data, chats: Data, **config: Any) -> Any:
    return bench.teach(distill, out, {"model": "base", "teacher": teacher.name, "data": "chats", **STEPS, **config},
                       chats, base, teacher)  # fmt: skip


def captured(bench: Bench, out: str, teacher: Model, chats: Data, **config: Any) -> tuple[Data, dict[str, Any]]:
    given = {"teacher": teacher.name, "data": "chats", "dtype": "float32", **config}
    _, facts = bench.teach(capture, out, given, chats, None, teacher)
    return Data(out, "signals", bench.root / out), facts


def test_the_recipe_s_divergences_are_those_that_there_are() -> None:
    """The config says it without torch; the objectives are asked here."""
    assert set(get_args(distill.DivergenceName)) == set(get_args(divergence.DivergenceName)) | set(distill.ACROSS)
    assert get_args(AcrossName) == distill.ACROSS
    assert {name: mix for name, mix in distill.MIXED.items() if name not in distill.ACROSS} == divergence.MIX
    drawn = [name for name in get_args(divergence.DivergenceName) if divergence.takes_drawn(name)]
    assert drawn == [distill.SERVED_BY_DRAWS]


def test_a_student_comes_near_its_teacher(bench: Bench, base: Model, teacher: Model, chats: Data):
    model, facts = distilled(bench, "online", base, teacher, chats)
    held_out = curve(model, "held_out")
    assert held_out[-1]["divergence"] < 0.2 * held_out[0]["divergence"]
    assert facts["teachers"] == {"teacher": {"signal": "its distributions, asked at every step"}}


def test_all_entries_captured_teach_as_the_teacher_does(bench: Bench, base: Model, teacher: Model, chats: Data):
    signals, facts = captured(bench, "all", teacher, chats, top=300)
    assert facts["rows"] == len(CHATS)
    online, _ = distilled(bench, "online2", base, teacher, chats)
    offline, told = distilled(bench, "offline", base, signals, chats)
    first, second = curve(online, "train"), curve(offline, "train")
    assert [row["loss"] for row in second] == pytest.approx([row["loss"] for row in first], rel=0.02, abs=2e-3)
    assert told["teachers"]["all"]["bytes_per_token"] == facts["bytes_per_token"]


def test_draws_teach_too(bench: Bench, base: Model, teacher: Model, chats: Data):
    signals, facts = captured(bench, "drawn", teacher, chats, draws=50)
    model, _ = distilled(bench, "from-draws", base, signals, chats)
    held_out = curve(model, "held_out")
    assert held_out[-1]["divergence"] < 0.3 * held_out[0]["divergence"]
    assert facts["bytes_per_token"] < 40


def test_a_student_answers_itself(bench: Bench, base: Model, teacher: Model, chats: Data):
    own = {"share": 0.5, "max_tokens": 16, "reuse": 2}
    model, facts = distilled(bench, "own", base, teacher, chats, divergence="reverse_kl", on_policy=own)
    held_out = curve(model, "held_out")
    assert held_out[-1]["divergence"] < 0.5 * held_out[0]["divergence"]
    assert facts["own_answers"]["rows"] > 0


def test_it_is_said_where_the_students_answers_are_cut(bench: Bench, base: Model, teacher: Model, chats: Data):
    bench.warnings.clear()
    _, facts = distilled(bench, "cut", base, teacher, chats, epochs=1, on_policy={"max_tokens": 1})
    assert facts["own_answers"]["cut"] > 0.2 * facts["own_answers"]["rows"]
    (said,) = bench.warnings
    assert re.fullmatch(r"own answers at step \d+: \d+ of \d+ were cut after 1 tokens and .*; raise max_tokens", said)


def test_the_teacher_may_read_more(bench: Bench, base: Model, teacher: Model, chats: Data):
    """Context distillation: the student becomes like itself with the answer before its eyes."""
    model, _ = distilled(bench, "guided", teacher, teacher, chats, teacher_prompt="say: {answer}", learning_rate=1e-3)
    rows = curve(model, "held_out")
    assert rows[0]["divergence"] > 0
    assert rows[-1]["divergence"] < rows[0]["divergence"]


def test_hidden_states_online_and_captured(bench: Bench, base: Model, teacher: Model, chats: Data):
    config = {"divergence_weight": 0, "hidden_weight": 1.0, "hidden": "cosine"}
    model, facts = distilled(bench, "hidden", base, teacher, chats, **config)
    rows = curve(model, "held_out")
    assert rows[-1]["hidden"] < 0.7 * rows[0]["hidden"]
    assert facts["layers"] == [[[1, 1]]]
    assert not any("projection" in name for name in bench.hashes("hidden"))
    signals, _ = captured(bench, "states", teacher, chats, layers=[1], width=16)
    model, _ = distilled(bench, "hidden-captured", base, signals, chats, **config)
    rows = curve(model, "held_out")
    assert rows[-1]["hidden"] < 0.7 * rows[0]["hidden"]


REFUSED = [
    ({"top": 5}, {"temperature": 2.0}, "captured at temperature 1, and the divergence is at 2"),
    ({"draws": 5}, {"divergence": "jsd"}, "right on average for forward_kl alone"),
    ({"top": 5}, {"hidden_weight": 1.0}, "no hidden states are captured"),
    ({"layers": [1]}, {}, "no distributions are captured"),
    ({"top": 5}, {"on_policy": {}}, "cannot be asked about the student's own answers"),
    ({"top": 5}, {"teacher_prompt": "be kind"}, "cannot be asked about other prompts"),
    ({"top": 5, "layers": [1]}, {"hidden_weight": 1.0, "layers": {1: 3}}, "layer 3 is not captured: 1 are"),
    ({"top": 5}, {"learn": "all"}, "are not those that were captured"),
]


@pytest.mark.parametrize(("kept", "asked", "message"), REFUSED)
def test_what_was_captured_otherwise_is_refused(
    bench: Bench, base: Model, teacher: Model, chats: Data, kept: Any, asked: Any, message: str
):
    """Trap: Offline logits matched to rows by step number under shuffling: key by row id and token hash."""
    signals, _ = captured(bench, "-".join(kept) + "".join(asked), teacher, chats, **kept)
    with pytest.raises(PotstillError, match=re.escape(message)):
        distilled(bench, "refused", base, signals, chats, **asked)


def test_another_dataset_is_refused(bench: Bench, base: Model, teacher: Model, chats: Data):
    signals, _ = captured(bench, "few", teacher, bench.data("chats", "chats", CHATS[:20]), top=5)
    with pytest.raises(PotstillError, match="was not captured"):
        distilled(bench, "refused", base, signals, bench.data("chats", "chats", CHATS))


def test_another_tokenizer_beside_the_signal_is_refused(bench: Bench, base: Model, teacher: Model, chats: Data) -> None:
    """Trap: "Same size is not same vocabulary": two tokens have changed places."""
    signals, _ = captured(bench, "swapped", teacher, chats, top=5)
    path = signals.path / "tokenizer" / "tokenizer.json"
    text = json.loads(path.read_text())
    first, second, *_ = sorted(text["model"]["vocab"], key=len, reverse=True)
    vocabulary = text["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(text))
    with pytest.raises(PotstillError, match="is not the one whose tokens it speaks of"):
        distilled(bench, "refused", base, signals, chats)


def test_a_layer_that_is_not_there_is_refused(bench: Bench, base: Model, teacher: Model, chats: Data):
    with pytest.raises(PotstillError, match="no decoder layer 9"):
        captured(bench, "no-layer", teacher, chats, layers=[9])
    with pytest.raises(PotstillError, match="no decoder layer 9"):
        distilled(bench, "refused", base, teacher, chats, hidden_weight=1.0, layers={1: 9})


@pytest.mark.parametrize("how", ["cosine", "mse"])
@pytest.mark.parametrize("width", [None, 8])
def test_a_student_that_is_its_teacher_is_like_what_was_captured_of_it(
    bench: Bench, teacher: Model, chats: Data, how: str, width: int | None
):
    """Where widths are equal, what stands between begins as the very sketch that the states were seen through."""
    signals, _ = captured(bench, f"itself-{width}", teacher, chats, layers=[1], width=width)
    config = {"divergence_weight": 0, "hidden_weight": 1.0, "hidden": how, "learning_rate": 1e-9, "epochs": 1}
    model, _ = distilled(bench, "is-its-teacher", teacher, signals, chats, **config)
    assert curve(model, "held_out")[0]["hidden"] < 1e-4
    other, _ = captured(bench, f"itself-{width}", teacher, chats, layers=[1], width=width)
    header = Reader(other.path / "signals").header
    assert [(one.whole, one.width, one.of, one.seed) for one in header.hidden] == [(32, width or 32, 1, 3)]


TOGETHER: dict[str, Any] = {"kind": "distill", "model": "base", "teacher": "t", "data": "chats"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"teacher": ["t", {"from": "t", "weight": 5}]}, "'t' is named twice as a teacher"),
        ({"teacher": []}, "teacher is an empty list"),
        ({"temperature": 1e-30}, "greater than or equal to 0.01"),
        ({"hidden_weight": 1, "layers": {}}, "layers is an empty mapping"),
        ({"hidden_weight": 1, "layers": 0}, "greater than or equal to 1"),
        ({"hidden_weight": 1, "layers": {0: 1}}, "greater than or equal to 1"),
        ({"on_policy": {}, "likelihood_weight": 0.5}, "would teach the student its own answers"),
        ({"divergence": "alm", "learn": "all"}, "set learn: assistant"),
        ({"divergence": "gold", "temperature": 2}, "leave temperature out"),
        ({"divergence_weight": 0}, "nothing of the teacher counts"),
        ({"teacher_prompt": "Say {answer"}, "'{answer', which stands for nothing; write {answer}"),
        ({"teacher_prompt": "{anwser} it is"}, "'{anwser}', which stands for nothing; write {answer}"),
        ({"teacher_prompt": "Be kind", "learn": "all"}, "set learn: assistant"),
        ({"on_policy": {}, "learn": "all"}, "set learn: assistant"),
        ({"teacher": "base", "on_policy": {}}, "'base' has nothing to learn from itself"),
        ({"teacher_prompt": "Say { Answers }"}, "'{ Answers }', which stands for nothing; write {answer}"),
    ],
)
def test_a_plan_refuses_what_no_model_is_needed_to_refuse(asked: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=re.escape(message)):
        distill.DistillConfig(**{**TOGETHER, **asked})


def test_a_teacher_that_reads_less_than_the_student_may_answer_is_refused(
    bench: Bench, base: Model, teacher: Model, chats: Data
):
    """Before anything is drawn: what stands beyond a model's positions means nothing to it."""
    shape = {"layers": 1, "width": 16, "heads": 2, "context": 90}
    near, _ = bench.run(init, "near", {"model": "teacher", "family": "llama", "size": shape}, (), teacher)
    own = {"max_tokens": 80}
    with pytest.raises(PotstillError, match=r"name another teacher than near, who reads 90"):
        distilled(bench, "refused", base, near, chats, divergence="reverse_kl", on_policy=own)


def test_a_shard_of_another_capture_in_a_sealed_place_is_refused(
    bench: Bench, base: Model, teacher: Model, chats: Data
):
    signals, _ = captured(bench, "of-teacher", teacher, chats, layers=[1])
    other, _ = captured(bench, "of-base", base, chats, layers=[1])
    head = {"stage": "s", "kind": "capture", "version": 2, "produces": "signals", "key": "k", "seed": 0}
    head |= {"config": {}, "inputs": {}, "facts": {}}
    sealed = seal(signals.path, bench.root / "sealed", head)
    data = Data("sealed", "signals", sealed.path)
    states = {"divergence_weight": 0, "hidden_weight": 1.0}
    distilled(bench, "right", base, data, chats, **states)
    (sealed.path / "signals" / "000000.signal").write_bytes((other.path / "signals" / "000000.signal").read_bytes())
    with pytest.raises(PotstillError, match=r"000000.signal: its bytes are not those that were sealed. Remove"):
        distilled(bench, "refused", base, data, chats, **states)


def test_a_prompt_may_hold_braces_of_its_own():
    words = 'Reply as {"answer": 1}; the answer is {answer}'
    assert distill.DistillConfig(**{**TOGETHER, "teacher_prompt": words}).teacher_prompt == words


def test_each_teacher_has_its_own_weight():
    config = distill.DistillConfig(**{**TOGETHER, "teacher": ["one", {"from": "other", "weight": 0.3}]})
    assert config.weights == {"one": 1.0, "other": 0.3}


def test_layers_may_be_written_as_yaml_writes_numbers(tmp_path: Path):
    """YAML's keys are text here: "01" is taken as 1."""
    rows = "".join(chat.to_line() for chat in CHATS[:3])
    (tmp_path / "chats.jsonl").write_text(rows)
    text = (
        "name: x\nmodels: {m: {path: a/b}, t: {path: a/c}}\nstages:\n"
        "  d: {kind: distill, model: m, teacher: t, data: chats.jsonl, "
        'hidden_weight: 1, layers: {"01": 2, 3: 4}}\n'
    )
    (tmp_path / "x.yaml").write_text(text)
    config = load_recipe(str(tmp_path / "x.yaml"), ()).stages["d"].config
    assert config.layers == {1: 2, 3: 4}
