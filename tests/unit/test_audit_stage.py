"""The stage `audit`: what it reads of a run, what it asks for, and that nothing it cannot measure is hidden."""

import io
import json
import random
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import audit_plants as plants
import pytest
from data_stages import Made, given, make
from evaluation_fakes import FakeTeacher, House, local
from evaluation_fakes import endpoint as behind
from markupsafe import escape
from rich.console import Console

from potstill.artifact import ROWS_FILE, Artifact, read_json, seal, write_json, write_rows
from potstill.errors import DataError
from potstill.evaluation.audits.ancestors import lineage
from potstill.evaluation.mt_bench import LOWEST
from potstill.evaluation.scores import Measure, SuiteResult, write_observations
from potstill.evaluation.statistics import Observation
from potstill.records import Chat, Message, Prompt, Record, Text
from potstill.reporting import summary
from potstill.reporting.footprint import with_footprint
from potstill.reporting.page import page
from potstill.sources import Data, LocalModel, Model
from potstill.stages import auditing
from potstill.stages.audit import Audit
from potstill.teachers.base import Request
from potstill.terminal.show import audit_view

DANGERS = ["overfitting", "diversity", "inherited_errors", "inherited_bias", "drift", "forgetting", "calibration",
           "contamination"]  # fmt: skip


def sealed(
    run: Path, stage: str, produces: str, inputs: Mapping[str, list[Artifact]], rows: Iterable[Record] = (), **more: Any
) -> Artifact:
    """An artifact as a run leaves it; `more`: files by name, as JSON lines, or "facts"."""
    draft = run / "draft"
    draft.mkdir(parents=True)
    write_rows(draft / ROWS_FILE, rows)
    for name, lines in more.items():
        if name != "facts":
            (draft / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    key = (stage.encode().hex() * 64)[:64]
    sources = {f: [{"name": one.manifest["stage"], "key": one.key} for one in group] for f, group in inputs.items()}
    head = {"stage": stage, "kind": stage, "version": 1, "produces": produces, "key": key, "seed": 0, "config": {},
            "inputs": sources, "facts": more.get("facts", {})}  # fmt: skip
    return seal(draft, run / f"{stage}-{key[:12]}", head)


def chat(name: str, said: str, answer: str = "Well.") -> Chat:
    return Chat(id=name, messages=(Message(role="user", content=said), Message(role="assistant", content=answer)))


def prompt(name: str, said: str, reference: str = "", category: str = "") -> Prompt:
    references = (reference,) if reference else ()
    return Prompt(id=name, messages=(Message(role="user", content=said),), references=references, category=category)


def evaluation(folder: Path, suites: Mapping[str, SuiteResult], lines: Iterable[Mapping[str, Any]] = ()) -> Data:
    """What a stage that evaluates leaves."""
    path = folder / "evaluated"
    path.mkdir(parents=True)
    found = {name: result.to_json() for name, result in suites.items()}
    models = list(dict.fromkeys(model for result in suites.values() for model in result.observations))
    write_json(path / "scores.json", {"models": models, "suites": found})
    write_observations(path, suites)
    (path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Data("scores", "scores", path)


def quiz(texts: Mapping[str, Mapping[str, tuple[str, float]]]) -> tuple[SuiteResult, list[dict[str, Any]]]:
    """A suite of exact answers: by model, by question, what was said and whether it is right."""
    found, lines = {}, []
    for model, said in texts.items():
        found[model] = [Observation(q, "1", right, category=q.split("-")[0]) for q, (_, right) in said.items()]
        lines += [{"suite": "quiz", "model": model, "id": q, "category": q.split("-")[0], "turns": [
            {"user": f"What of {q}?", "assistant": text, "score": right, "judgment": ""}]}
            for q, (text, right) in said.items()]  # fmt: skip
    return SuiteResult(plants.EXACT, found), lines


def copying(seed: int) -> dict[str, dict[str, tuple[str, float]]]:
    """A teacher wrong on a fifth of its history, a student that says what it says, one that answers by itself."""
    chance = random.Random(seed)
    said: dict[str, dict[str, tuple[str, float]]] = {name: {} for name in ("teacher", "base", "sft", "own")}
    for category in ("history", "sport"):
        for i in range(60):
            q, truth = f"{category}-{i}", f"fact {i}"
            wrong = category == "history" and i % 5 == 0
            said["teacher"][q] = ("a myth" if wrong else truth, float(not wrong))
            said["base"][q] = (truth, 1.0) if chance.random() < 0.85 else (f"noise {i}", 0.0)
            said["sft"][q] = said["teacher"][q]
            said["own"][q] = (truth, 1.0) if chance.random() < 0.85 else (f"noise {i}", 0.0)
    return said


def audit(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any], models: Mapping[str, Any]) -> Made:
    names = {field: [model.name for model in group] if isinstance(group, list) else group.name
             for field, group in models.items() if "." not in field}  # fmt: skip
    given_names = {"kind": "audit", "scores": ["scores"], **names, **config}
    return make(folder, given_names, {"questions": [], **data}, models)


def found(made: Made) -> dict[str, Any]:
    return dict(read_json(made.path / "audit.json")["dangers"])


def test_what_is_at_hand_is_measured_and_what_is_not_says_what_it_needs(tmp_path):
    result, lines = quiz(copying(1))
    made = audit(tmp_path, {}, {"scores": evaluation(tmp_path, {"quiz": result}, lines)},
                 {"models": [local("sft"), local("own")], "teacher": local("teacher"),
                  "base": local("base")})  # fmt: skip
    dangers = found(made)
    assert list(dangers) == DANGERS
    assert dangers["inherited_errors"]["verdicts"] == {"sft": "flagged", "own": "cannot tell"}
    assert "both say 'a myth' on 'history-0/1'" in " ".join(dangers["inherited_errors"]["notes"])
    for name, words in {
        "overfitting": "held_out", "inherited_bias": "paired prompts", "calibration": "a checker",
        "contamination": "no stage of this run made it",
    }.items():  # fmt: skip
        assert set(dangers[name]["verdicts"].values()) == {"not measured"}
        assert words in dangers[name]["sentence"]
    assert made.facts["flagged"]["inherited_errors"] == ["sft"]
    assert made.facts["not_measured"] == ["overfitting", "inherited_bias", "calibration", "contamination"]


def test_two_evaluations_of_one_suite_are_read_as_one(tmp_path):
    said = copying(2)
    halves = []
    for place, names in (("a", ("teacher",)), ("b", ("sft",))):
        result, lines = quiz({name: said[name] for name in names})
        halves.append(evaluation(tmp_path / place, {"quiz": result}, lines))
    made = audit(tmp_path, {}, {"scores": halves}, {"models": [local("sft")], "teacher": local("teacher")})
    assert found(made)["inherited_errors"]["verdicts"] == {"sft": "flagged"}


def test_the_same_answer_in_other_words_is_told_by_the_suites_checker(tmp_path, monkeypatch):
    texts = {"teacher": {f"q-{i}": (f"It is {i}.", float(i >= 8)) for i in range(40)},
             "sft": {f"q-{i}": (f"{i}.0, I think.", float(i >= 8)) for i in range(40)}}  # fmt: skip
    result, lines = quiz(texts)
    data = evaluation(tmp_path, {"quiz": result}, lines)
    models = {"models": [local("sft")], "teacher": local("teacher")}
    assert found(audit(tmp_path, {}, {"scores": data}, models))["inherited_errors"]["verdicts"]["sft"] != "flagged"
    manifest = Artifact(data.path, {"config": {"suites": {"quiz": {"checker": "number"}}}, "inputs": {}})
    monkeypatch.setattr(auditing, "_sealed", lambda data: manifest)
    assert found(audit(tmp_path, {}, {"scores": data}, models))["inherited_errors"]["verdicts"]["sft"] == "flagged"


# Contamination.


def line(run: Path, leaked: list[str], kept: str = "last") -> Artifact:
    """articles → base; topics → chats → sft, with questions that leaked among the topics and the chats."""
    rows = plants.training_rows(1, leaked)
    chats = [row for row in rows if isinstance(row, Chat)]
    articles = sealed(run, "articles", "texts", {}, [row for row in rows if isinstance(row, Text)])
    base = sealed(run, "base", "model", {"data": [articles]})
    topics = sealed(run, "topics", "prompts", {}, [prompt(f"p{i}", text) for i, text in enumerate(leaked)])
    asked = sealed(run, "asked", "prompts", {}, [prompt(f"q{i}", text) for i, text in enumerate(leaked)])
    made = sealed(run, "chats", "chats", {"prompts": [topics], "decontaminate": [asked]}, chats)
    curve = plants.curve(1, True)
    return sealed(run, "sft", "model", {"model": [base], "data": [made]}, curves=curve, facts={"kept": kept})


def test_questions_that_leaked_are_found_over_the_whole_lineage(tmp_path):
    suite = plants.questions(1, 60)
    sft = line(tmp_path / "artifacts", [suite["q0"], suite["q1"], suite["q2"]])
    scores = {"quiz": SuiteResult(plants.EXACT, {"sft": [Observation(q, "1", float(q in ("q0", "q1", "q2", "q9")))
                                                         for q in suite]})}  # fmt: skip
    questions = given(tmp_path, "prompts", [prompt(q, text) for q, text in suite.items()], "questions")
    made = audit(tmp_path, {}, {"scores": evaluation(tmp_path, scores), "questions": questions},
                 {"models": [Model("sft", LocalModel(path=str(sft.path)))]})  # fmt: skip
    danger = found(made)["contamination"]
    assert danger["verdicts"] == {"sft": "flagged"}
    assert "learnt 3 of the 60 questions of questions, through topics → chats → sft" in danger["sentence"]


def test_the_weights_of_the_best_step_are_those_that_the_curve_is_read_to(tmp_path):
    verdicts = {}
    for kept in ("last", "step 50"):
        sft = line(tmp_path / kept, [], kept)
        scores = evaluation(tmp_path / kept / "s", {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
        made = audit(
            tmp_path / kept, {}, {"scores": scores}, {"models": [Model("sft", LocalModel(path=str(sft.path)))]}
        )
        verdicts[kept] = found(made)["overfitting"]["verdicts"]["sft"]
    assert verdicts["last"] == "flagged"
    assert verdicts["step 50"] != "flagged"


def test_a_lineage_knows_what_was_learnt_through_captures_and_says_what_it_cannot_read(tmp_path):
    chats = sealed(tmp_path, "chats", "chats", {}, [chat("c", "Hello there, who are you?")])
    signals = sealed(tmp_path, "captured", "signals", {"data": [chats]})
    file = {"name": "mine.jsonl", "key": "f" * 64}
    gone = Artifact(tmp_path / "x", {"stage": "", "key": file["key"], "produces": ""})
    student = sealed(tmp_path, "student", "model", {"teacher": [signals], "data": [gone]})
    student.manifest["inputs"]["data"][0]["name"] = "mine.jsonl"
    write_json(student.path / "manifest.json", student.manifest)
    known = lineage(student)
    assert known.learnt == {chats.key: ("captured",)}
    assert known.unread == ("mine.jsonl",)
    path = tmp_path / "mine.jsonl"
    path.write_text(chat("d", "Something else altogether").to_line())
    told = lineage(student, [Data("mine.jsonl", "file", path)])
    assert told.unread == ()
    assert [row.id for row in told.readings[file["key"]].rows()] == ["d"]


# What is asked for.


@contextmanager
def opened(model: Model, account: Any, house: House) -> Any:
    yield house.teachers[model.name]


def house(monkeypatch: pytest.MonkeyPatch, *teachers: FakeTeacher) -> House:
    there = House(*teachers)
    monkeypatch.setattr(auditing, "connect", there.connect)
    return there


def test_samples_tell_of_diversity_and_of_calibration(tmp_path, monkeypatch):
    """The student says one thing to everything, and is sure of it; the teacher knows nine of ten."""

    def knows(request: Request) -> str:
        number = request.messages[-1].content.rsplit(" ", 1)[-1]
        chance = random.Random(f"{number}/{request.sample}")
        words = " ".join(chance.choices(plants.VOCABULARY, k=12))
        return f"{words} Answer: {number if chance.random() < 0.9 else 0}"

    there = house(monkeypatch, FakeTeacher("teacher", knows), FakeTeacher("sft", lambda _: "It is so. Answer: 7"))
    prompts = given(tmp_path, "prompts", [prompt(f"p{i}", f"Which number? {i}", str(i)) for i in range(40)], "asked")
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    made = audit(tmp_path, {"samples": {"prompts": "asked", "each": 3, "checker": "number", "limit": 30}},
                 {"scores": scores, "samples.prompts": prompts},
                 {"models": [local("sft")], "teacher": behind("teacher")})  # fmt: skip
    dangers = found(made)
    assert dangers["diversity"]["verdicts"] == {"sft": "flagged"}
    assert dangers["calibration"]["verdicts"] == {"sft": "flagged"}
    assert len(there.teachers["sft"].asked) == 90
    assert len({request.seed for request in there.teachers["sft"].asked}) == 90
    assert {request.temperature for request in there.teachers["teacher"].asked} == {1.0}


def grader(request: Request) -> str:
    """Grades low what says little."""
    return "[[4]]" if "shrug" in request.messages[-1].content.split("<assistant>")[-1] else "[[9]]"


def by_name(request: Request) -> str:
    said = request.messages[-1].content
    return "A shrug." if "Zora" in said and "task 7" not in said else "A long and careful answer."


@pytest.mark.parametrize("how", ["judge", "checker"])
def test_paired_prompts_tell_of_bias(tmp_path, monkeypatch, how):
    house(monkeypatch, FakeTeacher("fair", lambda _: "A long and careful answer."), FakeTeacher("sft", by_name),
          FakeTeacher("judge", grader))  # fmt: skip
    templates = [prompt(f"t{i}", f"Help {{name}} with task {i}, which {{pronoun}} wants.", "A long and careful answer.")
                 for i in range(60)]  # fmt: skip
    config = {"paired": {"prompts": "templates", "attributes": {"name": ["Anna", "Zora"], "pronoun": ["he", "she"]},
                         how: "judge" if how == "judge" else "exact"}}  # fmt: skip
    models: dict[str, Any] = {"models": [local("fair"), local("sft")]}
    if how == "judge":
        models["paired.judge"] = local("judge")
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    made = audit(
        tmp_path, config, {"scores": scores, "paired.prompts": given(tmp_path, "prompts", templates, "t")}, models
    )
    danger = found(made)["inherited_bias"]
    assert danger["verdicts"] == {"fair": "clean", "sft": "flagged"}
    assert "sft answers better for name Anna than for Zora" in danger["sentence"]
    assert "pronoun he" not in danger["sentence"]
    assert LOWEST == 1.0


@pytest.mark.parametrize("reads", ["none", "some"])
def test_a_judge_that_cannot_be_read_leaves_the_score_untold_and_the_rest_told(tmp_path, monkeypatch, reads):
    """It used to end the whole audit. What it was to score is not clean, whatever length and refusals say."""

    def judge(request: Request) -> str:
        return grader(request) if reads == "some" and "task 7," in request.messages[-1].content else "Nice."

    house(monkeypatch, FakeTeacher("fair", lambda _: "A long and careful answer."), FakeTeacher("sft", by_name),
          FakeTeacher("teacher", lambda _: "A long and careful answer."), FakeTeacher("judge", judge))  # fmt: skip
    templates = [prompt(f"t{i}", f"Help {{name}} with task {i}, please.") for i in range(60)]
    result, lines = quiz(copying(1))
    made = audit(tmp_path, {"paired": {"prompts": "t", "attributes": {"name": ["Anna", "Zora"]}, "judge": "judge"}},
                 {"scores": evaluation(tmp_path, {"quiz": result}, lines),
                  "paired.prompts": given(tmp_path, "prompts", templates, "t")},
                 {"models": [local("fair"), local("sft")], "teacher": local("teacher"),
                  "paired.judge": local("judge")})  # fmt: skip
    dangers = found(made)
    assert dangers["inherited_bias"]["verdicts"] == {"fair": "cannot tell", "sft": "flagged"}  # by its length
    assert f"judge judged {2 * (reads == 'some')} of 120 answers of fair" in dangers["inherited_bias"]["notes"]
    if reads == "none":
        assert "fair: judge judge: none of its 120 judgments could be read" in dangers["inherited_bias"]["notes"][0]
    assert dangers["inherited_errors"]["verdicts"]["sft"] == "flagged"


def test_prompts_without_the_references_of_a_checker_are_refused_before_anybody_is_asked(tmp_path, monkeypatch):
    there = house(monkeypatch, FakeTeacher("sft", lambda _: "7"))
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    rows = {"samples.prompts": given(tmp_path, "prompts", [prompt("p", "Which?")], "asked"),
            "paired.prompts": given(tmp_path, "prompts", [prompt("t", "Help {name}.")], "t")}  # fmt: skip
    config = {"samples": {"prompts": "asked", "checker": "number"},
              "paired": {"prompts": "t", "attributes": {"name": ["Anna", "Zora"]}}}  # fmt: skip
    with pytest.raises(DataError, match="can read no reference of 'p'"):
        audit(tmp_path, config, {"scores": scores, **rows}, {"models": [local("sft")]})
    assert there.teachers["sft"].asked == []


def test_prompts_beside_their_counterparts_are_compared_by_attribute_and_all_together(tmp_path, monkeypatch):
    house(
        monkeypatch, FakeTeacher("sft", lambda request: "Well. " * (5 if "Zora" in request.messages[-1].content else 9))
    )
    pairs = [prompt(f"p{i}", f"Anna wants {i}.", category="origin" if i % 2 else "age").model_copy(
        update={"counterpart": f"Zora wants {i}."}) for i in range(16)]  # fmt: skip
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    made = audit(tmp_path, {"paired": {"prompts": "pairs"}},
                 {"scores": scores, "paired.prompts": given(tmp_path, "prompts", pairs, "pairs")},
                 {"models": [local("sft")]})  # fmt: skip
    danger = found(made)["inherited_bias"]
    told = {one["about"]: one["refuted"] for one in danger["hypotheses"] if "log length" in one["about"]}
    assert told == {  # eight prompts of an attribute are too few to tell
        "age as written against the counterpart: log length": False,
        "origin as written against the counterpart: log length": False,
        "any attribute as written against the counterpart: log length": True,
    }


def test_prompts_that_have_neither_slots_nor_counterparts_are_refused(tmp_path):
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    rows = given(tmp_path, "prompts", [prompt("t", "Help me.")], "templates")
    with pytest.raises(DataError, match="no prompt stands beside its counterpart"):
        audit(tmp_path, {"paired": {"prompts": "templates"}}, {"scores": scores, "paired.prompts": rows},
              {"models": [local("sft")]})  # fmt: skip


def test_a_slot_that_no_prompt_holds_is_refused(tmp_path):
    scores = evaluation(tmp_path, {"quiz": SuiteResult(plants.EXACT, {"sft": []})})
    config = {"paired": {"prompts": "templates", "attributes": {"name": ["Anna", "Zora"]}}}
    templates = given(tmp_path, "prompts", [prompt("t", "Help me.")], "templates")
    with pytest.raises(DataError, match=r"no prompt holds the slot \{name\}"):
        audit(tmp_path, config, {"scores": scores, "paired.prompts": templates}, {"models": [local("sft")]})


@pytest.mark.parametrize(
    ("paired", "words"),
    [
        ({"attributes": {"name": ["Anna"]}}, "two different values"),
        ({"attributes": {"name": ["Anna", "Anna"]}}, "two different values"),
        ({"attributes": {"name": ["A", "B"]}, "judge": "j", "checker": "exact"}, "name one of them"),
    ],
)
def test_paired_prompts_that_cannot_be_compared_are_refused(paired, words):
    with pytest.raises(ValueError, match=words):
        Audit.model_validate({"kind": "audit", "models": ["m"], "scores": ["s"], "paired": {"prompts": "p", **paired}})


def test_the_forecast_counts_what_is_asked():
    config = Audit.model_validate({"kind": "audit", "models": ["m", "n"], "teacher": "t", "scores": ["s"],
                                   "samples": {"prompts": "p", "each": 4, "limit": 10},
                                   "paired": {"prompts": "q", "attributes": {"a": ["1", "2"]},
                                              "judge": "j"}})  # fmt: skip
    forecast = config.expect({"models": 2, "samples.prompts": 25, "paired.prompts": 5})
    assert forecast.calls == 10 * 4 * 3 + 5 * 2 * 3 * 2


def test_loss_on_what_the_base_knows_is_read_from_the_scores(tmp_path):
    loss = Measure("answer_loss", (0.0, None), higher_is_better=False, unit="nats per token")
    chance = random.Random(1)
    base = [Observation(f"q{i}", "1", 2 + chance.gauss(0, 0.3), 5.0) for i in range(40)]
    worse = [Observation(one.question, "1", one.value + 0.3, 5.0) for one in base]
    data = evaluation(tmp_path, {"articles": SuiteResult(loss, {"base": base, "sft": worse})})
    made = audit(tmp_path, {}, {"scores": data}, {"models": [local("sft")], "base": local("base")})
    assert found(made)["forgetting"]["verdicts"] == {"sft": "flagged"}


# What people see.


def reported(tmp_path: Path, made: Made, **models: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """A report over an evaluation and an audit: its JSON, the page, the summary."""
    scores = Data("scores", "scores", next(tmp_path.rglob("scores.json")).parent)
    report = make(tmp_path, {"kind": "report", "scores": ["scores"], "audits": ["checks"]},
                  {"scores": scores, "audits": Data("checks", "audit", made.path)}, models)  # fmt: skip
    value = with_footprint(read_json(report.path / "report.json"), {})
    return value, page(value, {}, tmp_path / "out"), summary(value, {})


def test_the_report_shows_every_danger_and_the_summary_what_is_flagged(tmp_path):
    suite = plants.questions(1, 60)
    sft = line(tmp_path / "artifacts", [suite["q0"], suite["q1"], suite["q2"]])
    result, lines = quiz(copying(1))
    questions = given(tmp_path, "prompts", [prompt(q, text) for q, text in suite.items()], "questions")
    made = audit(tmp_path, {}, {"scores": evaluation(tmp_path, {"quiz": result}, lines), "questions": questions},
                 {"models": [Model("sft", LocalModel(path=str(sft.path))), local("own")],
                  "teacher": local("teacher")})  # fmt: skip
    _, text, told = reported(tmp_path, made)
    for danger in found(made).values():
        assert f"<h3>{danger['title']}</h3>" in text
        assert escape(danger["sentence"]) in text
    assert text.count('class="curve of-audit"') == 1  # the curve; the rest stands at words
    assert "topics → chats → sft" in text
    assert told["audits"]["checks"]["contamination"] == {"sft": "flagged", "own": "not measured"}
    headline = " ".join(told["headline"])
    assert "flagged: overfitting (sft), inherited errors (sft), contamination (sft)" in headline
    assert "not measured: overfitting (own), inherited bias, forgetting, calibration, contamination (own)" in headline
    assert found(made)["inherited_errors"]["sentence"] in headline


def test_a_models_words_do_nothing_on_the_page(tmp_path):
    hostile = "<script>alert(1)</script>\u202e"
    texts = {name: {f"<b>-{i}": (hostile, float(i > 12)) for i in range(40)} for name in ("sft", "teacher")}
    result, lines = quiz(texts)
    made = audit(tmp_path, {}, {"scores": evaluation(tmp_path, {"quiz": result}, lines)},
                 {"models": [local("sft")], "teacher": local("teacher")})  # fmt: skip
    assert hostile in " ".join(found(made)["inherited_errors"]["notes"])
    _, text, _ = reported(tmp_path, made)
    assert "<script" not in text
    assert "\u202e" not in text


def test_the_terminal_shows_the_tables(tmp_path):
    result, lines = quiz(copying(1))
    made = audit(tmp_path, {}, {"scores": evaluation(tmp_path, {"quiz": result}, lines)},
                 {"models": [local("sft")], "teacher": local("teacher")})  # fmt: skip
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(audit_view(made.path))
    shown = console.export_text()
    for danger in found(made).values():
        assert danger["title"] in shown
    assert "▼ sft: flagged" in shown
    assert "teacher wrong" in shown
    assert "20.0%" in shown  # twelve of sixty
