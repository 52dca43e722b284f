"""What a student keeps of its teacher's score, and what both cost: shares, sizes, speed, memory and money."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import say
from kills import Killed, kill_in
from test_spool import small

from potstill.artifact import hash_file, read_json
from potstill.cli import main
from potstill.errors import RecipeError
from potstill.evaluation.footprint import amounts, kept
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Observation, paired_ratio
from potstill.money import Gauge
from potstill.recipe import load_recipe
from potstill.reporting.footprint import with_footprint
from potstill.runs.pipeline import run
from potstill.stages import report as report_stage
from potstill.teachers.base import Request
from potstill.teachers.local import LocalTeacher
from potstill.training.decoding import Batch
from potstill.training.models import load_model, load_tokenizer
from potstill.training.peak import PeakMemory

RIGHT = Measure("exact", (0.0, 1.0), share=True)
POINTS = Measure("mt_bench", (1.0, 10.0), unit="points")


def scored(values: dict[str, list[float]]) -> dict[str, list[Observation]]:
    return {name: [Observation(f"q{n}", "1", value) for n, value in enumerate(row)] for name, row in values.items()}


# What is kept.


def test_half_the_score_of_every_question_is_half_exactly() -> None:
    teacher = [8.0, 6.0, 9.0, 4.0, 7.0]
    result = SuiteResult(POINTS, scored({"teacher": teacher, "half": [x / 2 for x in teacher], "same": teacher}))
    found = kept(result, ["teacher", "half", "same"], "teacher")
    assert list(found) == ["half", "same"]
    assert found["half"]["mean"] == pytest.approx(0.5)
    assert found["half"]["low"] == pytest.approx(0.5) == found["half"]["high"]
    assert found["same"]["mean"] == 1
    assert found["half"]["n"] == 5


def test_a_family_counts_as_one_model() -> None:
    rows = {"t": [8.0, 6.0, 4.0], "s[seed=0]": [4.0, 3.0, 2.0], "s[seed=1]": [8.0, 3.0, 2.0]}
    result = SuiteResult(POINTS, scored(rows))
    names = list(result.to_json()["pooled"]["models"])
    found = kept(result, names, "t")
    (pool,) = found
    mean = scored({"s": [6.0, 3.0, 2.0]})["s"]
    assert found[pool] == paired_ratio(mean, result.observations["t"]).to_json()


def test_a_ratio_is_no_surer_than_answers_that_are_all_alike() -> None:
    rows = {
        "t": [float(n % 3 > 0) for n in range(30)],
        "none": [0.0] * 30,
        "same": [float(n % 3 > 0) for n in range(30)],
    }
    found = kept(SuiteResult(RIGHT, scored(rows)), ["none", "same"], "t")
    assert (found["none"]["mean"], found["none"]["low"]) == (0, 0)
    # Wilson's 11.4% of 0 in 30, over 20 of 30 [48.8%, 80.8%]: u / sqrt(l (2 m - l)).
    assert found["none"]["high"] == pytest.approx(0.1135 / (0.4878 * (4 / 3 - 0.4878)) ** 0.5, abs=1e-3)
    assert found["same"]["low"] < 0.9 < 1 < found["same"]["high"]
    best = {"t": [1.0] * 30, "s": rows["t"], "none": [0.0] * 30}
    found = kept(SuiteResult(RIGHT, scored(best)), ["s", "none"], "t")
    assert found["s"]["low"] == pytest.approx(0.4878, abs=1e-3)
    assert found["s"]["high"] > 0.81  # the teacher may be wrong on others, which its own 100% [88.6, 100] says
    assert found["none"]["high"] > 0.1135
    wrong = {"t": [0.0] * 29 + [1.0], "none": [0.0] * 30}
    assert kept(SuiteResult(RIGHT, scored(wrong)), ["none"], "t")["none"]["mean"] is None


def test_nobody_keeps_a_share_of_what_should_be_low() -> None:
    losses = Measure("answer_loss", (0.0, None), higher_is_better=False)
    assert kept(SuiteResult(losses, scored({"t": [1.0, 2.0], "s": [2.0, 2.0]})), ["t", "s"], "t") == {}
    assert kept(SuiteResult(POINTS, scored({"s": [2.0, 2.0]})), ["s"], "t") == {}
    effect = Measure("template", (-1.0, 1.0))
    assert kept(SuiteResult(effect, scored({"t": [0.5, 0.6], "s": [-0.1, 0.2]})), ["t", "s"], "t") == {}


def test_what_is_not_known_of_one_member_is_not_known() -> None:
    one = {"parameters": 10, "weights_bytes": 40, "answers": 4, "prompt_tokens": 8, "completion_tokens": 12}
    two = {**one, "weights_bytes": None, "completion_tokens": 20}
    found = amounts([{"a": one}, {"a": two}, {"b": one}])
    assert found["a"] == {**one, "weights_bytes": None, "completion_tokens": 16}
    assert found["b"] == one


# What it costs.


def joined(**changes: Any) -> dict[str, dict[str, Any]]:
    """Ten answers each, of 30 tokens to prompts of 100."""
    asked = {"answers": 10, "prompt_tokens": 1000, "completion_tokens": 300}
    report = {
        "models": ["teacher", "student", "untimed"],
        "members": {},
        "footprint": {
            "teacher": "teacher",
            "machine_usd_per_hour": 3.0,
            "models": {
                "teacher": {"parameters": None, "weights_bytes": None, **asked},
                "student": {"parameters": 7_000_000, "weights_bytes": 14_000_000, **asked},
                "untimed": {"parameters": 1, "weights_bytes": 4, **asked},
            },
            "kept": {"chat": {"student": {"mean": 0.934, "low": 0.901, "high": 0.962, "n": 80}}},
            **changes,
        },
    }
    measured = {
        "speeds": {
            "student": {"tokens": 600, "seconds": 2.0, "memory_bytes": 5, "memory_of": "process", "device": "cpu"}
        },
        "endpoints": {"teacher": {"price": {"input": 2.5, "output": 10.0}, "tokens_per_second": 50.0}},
    }
    found = with_footprint(report, measured)["footprint"]
    return {"sentences": found["sentences"], **{row["name"]: row for row in found["models"]}}


def test_a_thousand_answers_cost_their_tokens_or_their_seconds() -> None:
    rows = joined()
    assert rows["teacher"]["usd_per_1000_answers"] == pytest.approx(1000 * (100 * 2.5 + 30 * 10) / 1e6)
    assert rows["student"]["tokens_per_second"] == 300
    assert rows["student"]["usd_per_1000_answers"] == pytest.approx(1000 * 30 / 300 * 3.0 / 3600)
    assert rows["untimed"]["usd_per_1000_answers"] is None
    assert joined(machine_usd_per_hour=None)["student"]["usd_per_1000_answers"] is None


def test_the_sentence_says_what_is_known_and_no_more() -> None:
    assert joined()["sentences"] == ["student keeps 93% [90, 96] of the teacher's score on chat, with 1/7 of its cost."]
    assert joined(machine_usd_per_hour=None)["sentences"] == [
        "student keeps 93% [90, 96] of the teacher's score on chat."
    ]
    asked = {"answers": 10, "prompt_tokens": 1000, "completion_tokens": 300}
    models = {
        "teacher": {"parameters": 84_000_000, "weights_bytes": 28_000_000, **asked},
        "student": {"parameters": 7_000_000, "weights_bytes": 14_000_000, **asked},
    }
    (said,) = joined(models=models, machine_usd_per_hour=None)["sentences"]
    assert said == (
        "student keeps 93% [90, 96] of the teacher's score on chat, with 1/12 of its parameters and 1/2 of its "
        "bytes on disk."
    )
    unknown = {"chat": {"student": {"mean": None, "low": None, "high": None, "n": 2}}}
    assert joined(kept=unknown)["sentences"] == [
        "What share of the teacher's score on chat student keeps cannot be told."
    ]
    assert joined(teacher=None, kept={})["sentences"] == []


# What is measured.


def test_peak_memory_is_what_was_held_and_is_remembered() -> None:
    peak = PeakMemory(torch.device("cpu"))
    before = peak.bytes
    held = torch.ones(50_000_000)  # 200 MB
    peak.look()
    del held
    assert 0 <= before < 50_000_000
    assert 190_000_000 < peak.bytes < 400_000_000
    assert PeakMemory(torch.device("cpu")).bytes < 100_000_000, "another begins anew"


def test_a_gauge_counts_what_was_written_and_not_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(tmp_path / "m", 1)
    asked = [Request(say(f"user: the cat {n}"), 4 + n) for n in range(6)]
    gauges = [Gauge(), Gauge(), Gauge()]
    with LocalTeacher(model, state=tmp_path / "s", gauge=gauges[0]) as teacher:
        calm = sum(reply.completion_tokens for reply in teacher.complete(asked))
    assert gauges[0].tokens == calm > 0
    assert gauges[0].seconds > 0
    assert gauges[0].parameters == sum(p.numel() for p in {id(p): p for p in _parameters(model)}.values())
    assert gauges[0].weights_bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    with LocalTeacher(model, state=tmp_path / "s", gauge=gauges[1]) as teacher:
        list(teacher.complete(asked))
    assert (gauges[1].tokens, gauges[1].seconds) == (0, 0)
    with monkeypatch.context() as patch:
        kill_in(patch, Batch, "step", 6, before=True)
        with pytest.raises(Killed), LocalTeacher(model, state=tmp_path / "t", gauge=gauges[2]) as teacher:
            list(teacher.complete(asked))
    first = gauges[2].tokens
    with LocalTeacher(model, state=tmp_path / "t", gauge=gauges[2]) as teacher:
        list(teacher.complete(asked))
    assert calm <= gauges[2].tokens < calm + first


def _parameters(model: Any) -> list[torch.nn.Parameter]:
    return list(load_model(model, load_tokenizer(model), torch.device("cpu")).parameters())


# The whole way.

RECIPE = """\
name: r
servers: {{world: {{kind: miniature, seed: 0, entities: 40}}}}
models:
  scribe: {{endpoint: world, name: scribe, price: {{input: 2.5, output: 10}}}}
  student: {{path: student}}
stages:
  questions: {{kind: miniature, server: world, part: questions, per_category: 2}}
  scores:
    kind: evaluate
    models: [scribe, student]
    max_tokens: 48
    suites: {{right: {{protocol: exact, questions: tasks.jsonl, checker: 'own.py:by_length'}}}}
  report: {{kind: report, scores: [scores], teacher: {teacher}, machine_usd_per_hour: 1.0}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footprint")
    small(folder / "student", 1)
    rows = [{"id": str(n), "prompt": f"What is {n} and {n}?", "references": [str(n)]} for n in range(12)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.py").write_text("def by_length(a, b):\n    return (len(a) + int(b)) % 4 > 0\n")
    return folder


def whole(folder: Path, name: str, teacher: str = "scribe") -> Path:
    (folder / f"{name}.yaml").write_text(RECIPE.format(teacher=teacher))
    run(load_recipe(str(folder / f"{name}.yaml")), folder / name)
    return folder / name


def test_scores_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = whole(folder, "shown")
    assert main(["show", str(out), "scores"]) == 0
    mean = 100 * read_json(out / "summary.json")["scores"]["right"]["student"]["mean"]
    assert f"{mean:.1f}%" in capsys.readouterr().out


def test_a_report_has_a_row_a_model_and_nothing_measured_is_sealed(folder: Path) -> None:
    one, two = whole(folder, "one"), whole(folder, "two")
    seals = [
        {path.relative_to(out).as_posix(): hash_file(path) for path in (out / "artifacts").rglob("*") if path.is_file()}
        for out in (one, two)
    ]
    assert seals[0] == seals[1]
    rows = {row["name"]: row for row in read_json(one / "summary.json")["footprint"]["models"]}
    teacher, student = rows["scribe"], rows["student"]
    assert (teacher["parameters"], teacher["weights_bytes"], teacher["memory_bytes"]) == (None, None, None)
    assert teacher["tokens_per_second"] > 0
    sealed = read_json(one / "scores" / "manifest.json")["facts"]["answering"]
    price = (2.5 * sealed["scribe"]["prompt_tokens"] + 10 * sealed["scribe"]["completion_tokens"]) / 1e6
    assert teacher["usd_per_1000_answers"] == pytest.approx(1000 * price / 12)
    assert student["weights_bytes"] == (folder / "student" / "model.safetensors").stat().st_size
    timed = next(iter(read_json(one / "speed.json").values()))["student"]
    assert student["tokens_per_second"] == pytest.approx(timed["tokens"] / timed["seconds"])
    assert timed["tokens"] == sealed["student"]["completion_tokens"]
    assert student["memory_of"] == "process"
    ratio = student["kept"]["right"]
    scores = read_json(one / "summary.json")["scores"]["right"]
    assert ratio["mean"] == pytest.approx(scores["student"]["mean"] / scores["scribe"]["mean"])
    assert any(text.startswith("student keeps ") for text in read_json(one / "summary.json")["headline"])
    page = (one / "report.html").read_text()
    assert "What it keeps and what it costs" in page
    assert page.count("unknown") == 3, "of the model behind an endpoint: parameters, bytes and memory"


@pytest.mark.parametrize("damage", ["[1", '{"scores": 3}', ""])
def test_measurements_that_cannot_be_read_are_unknown(folder: Path, damage: str) -> None:
    out = whole(folder, "one")
    (out / "speed.json").write_text(damage)
    out = whole(folder, "one")
    rows = {row["name"]: row for row in read_json(out / "summary.json")["footprint"]["models"]}
    assert rows["student"]["tokens_per_second"] is None
    assert rows["student"]["usd_per_1000_answers"] is None
    assert rows["student"]["parameters"] > 0


def test_a_teacher_that_was_not_scored_is_refused(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"report.teacher': 'nobody' is a model that none of the scores has. Name one of: scribe, st"
    ):
        whole(folder, "wrong", "nobody")


def test_without_a_teacher_the_costs_stand_alone(folder: Path) -> None:
    out = whole(folder, "alone", "null")
    found = read_json(out / "summary.json")["footprint"]
    assert found["teacher"] is None
    assert all(row["kept"] == {} for row in found["models"])
    page = (out / "report.html").read_text()
    assert "What it costs" in page
    assert "What it keeps" not in page
    assert report_stage.Report.model_fields["teacher"].description
