"""capture and distill as stages: a toy student learns from a toy teacher, from its weights and from what was captured."""

from typing import Any

import pytest
from training_stages import CHATS, PRETRAIN, SFT, TEXTS, Bench, curve

from potstill.sources import Data, Model
from potstill.stages import capture, distill, pretrain, sft

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
