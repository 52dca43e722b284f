"""The evaluate stage from end to end, with teachers, a judge and a scorer that answer by rule."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from evaluation_fakes import FakeTeacher, House, data, endpoint, inputs, judge_by_length, local, questions, work
from pydantic import ValidationError

from potstill.artifact import read_json
from potstill.errors import DataError, RecipeError, TeacherError
from potstill.evaluation.failures import failed_judgments
from potstill.evaluation.likelihood import answer_loss
from potstill.evaluation.scores import read_results
from potstill.recipe import load_recipe
from potstill.records import Chat, Message, Pair
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.sources import Data
from potstill.stages import evaluate
from potstill.stages.suites import base
from potstill.teachers.base import Reply

LOSS = {"base": 2.0, "sft": 1.0, "dpo": 1.25}
USER = Message(role="user", content="Say something.")


def says(text):
    return (Message(role="assistant", content=text),)


def fake_scorer(model, exchanges, state=None):
    """A token a word; dpo likes answers with "good" in them."""
    found = []
    for answer in (exchange.answer for exchange in exchanges):
        words = answer[-1].content.split()
        liked = 3.0 if model.name == "dpo" and "good" in words else 0.0
        found.append((liked - LOSS[model.name] * len(words), len(words)))
    return found


@pytest.fixture
def house(monkeypatch):
    made = House(
        FakeTeacher("base", lambda r: "no"),
        FakeTeacher("sft", lambda r: "an answer of " + "some " * (len(r.messages[-1].content) % 2) + "words"),
        FakeTeacher("dpo", lambda r: "an answer of quite some words"),
        FakeTeacher("judge", judge_by_length),
    )
    monkeypatch.setattr(base, "connect", made.connect)
    monkeypatch.setattr(base, "local_scorer", fake_scorer)
    return made


def config(**changes):
    return evaluate.Evaluate.model_validate(
        {
            "kind": "evaluate",
            "models": ["base", "sft", "dpo"],
            "judge": "judge",
            "suites": {
                "chat": {"protocol": "mt_bench", "questions": "questions"},
                "aspects": {"protocol": "aspects", "questions": "questions", "aspects": ["honesty", "helpfulness"]},
                "loss": {"protocol": "answer_loss", "chats": "chats"},
                "preference": {"protocol": "preference", "pairs": "pairs", "reference": "sft"},
            },
            **changes,
        }
    )


def everything(folder, count=16):
    asked = data(folder, "questions", "prompts", questions(count))
    chats = [
        Chat(id="c1", messages=(USER, *says("one two"), USER, *says("three four five")), category="x"),
        Chat(id="c2", messages=(USER, Message(role="assistant", content="not learnt", train=False), USER, *says("w"))),
    ]
    pairs = [
        Pair(id="p1", prompt=(USER,), chosen=says("good and long it is"), rejected=says("bad")),
        Pair(id="p2", prompt=(USER,), chosen=says("good one"), rejected=says("a bad and long one")),
        Pair(id="p3", prompt=(USER,), chosen=says("short"), rejected=says("good but longer")),
        Pair(id="p4", prompt=(USER,), chosen=says("abc"), rejected=says("abd")),
    ]
    return inputs(
        {
            "suites.chat.questions": asked,
            "suites.aspects.questions": asked,
            "suites.loss.chats": data(folder, "chats", "chats", chats),
            "suites.preference.pairs": data(folder, "pairs", "pairs", pairs),
        },
        {
            "models": tuple(local(name) for name in LOSS),
            "judge": endpoint("judge"),
            "suites.chat.judge": (),
            "suites.aspects.judge": (),
            "suites.preference.reference": local("sft"),
        },
    )


@pytest.fixture
def scored(house, tmp_path):
    """The scores and answers of everything, and who was asked."""
    job = work(tmp_path)
    facts = evaluate.run(config(), everything(tmp_path), job)
    lines = (job.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return read_json(job.path / "scores.json"), [json.loads(line) for line in lines], house, facts


def test_scores_of_dialogues(scored):
    scores, *_ = scored
    assert scores["models"] == ["base", "sft", "dpo"]
    chat = scores["suites"]["chat"]
    assert (chat["protocol"], chat["scale"], chat["higher_is_better"]) == ("mt_bench", [1.0, 10.0], True)
    assert chat["models"]["base"] == {"mean": 2.0, "low": 2.0, "high": 2.0, "n": 32, "coverage": 1.0}
    assert chat["models"]["dpo"]["mean"] == 7.0
    assert chat["models"]["sft"]["low"] < chat["models"]["sft"]["mean"] < chat["models"]["sft"]["high"]
    assert set(chat["paired"]) == {"sft-base", "dpo-base", "dpo-sft"}
    paired = chat["paired"]["dpo-base"]
    assert (paired["mean"], paired["n"]) == (5.0, 32)
    assert 2.0 < paired["low"] < 5.0 < paired["high"] < 6.0, "the same on all 16 questions; one more could be another"
    assert chat["paired"]["dpo-sft"]["mean"] == pytest.approx(7.0 - chat["models"]["sft"]["mean"])
    assert list(chat["categories"]) == [q.category for q in questions(8)]
    assert chat["categories"]["math"]["dpo"]["n"] == 4


def test_an_aspect_is_a_suite(scored):
    suites = scored[0]["suites"]
    assert [name for name in suites if name.startswith("aspects")] == ["aspects/honesty", "aspects/helpfulness"]
    assert suites["aspects/honesty"]["models"]["base"]["mean"] == 2.0
    assert suites["aspects/honesty"]["models"]["dpo"]["mean"] == 5.0


def test_the_same_question_is_answered_once(scored):
    _, _, house, _ = scored
    assert [len(house.teachers[name].asked) for name in LOSS] == [32, 32, 32]
    assert len(house.teachers["judge"].asked) == 3 * 32 * 3


def test_each_suite_keeps_its_own_references(house, tmp_path):
    asked = [prompt.model_copy(update={"category": "math"}) for prompt in questions(2)]
    told = [prompt.model_copy(update={"references": ("the truth",)}) for prompt in asked]
    suites = {name: {"protocol": "mt_bench", "questions": name} for name in ("asked", "told")}
    rows = {"asked": asked, "told": told}
    given = inputs(
        {f"suites.{name}.questions": data(tmp_path, name, "prompts", rows[name]) for name in rows},
        {"models": local("dpo"), "judge": endpoint("judge")},
    )
    evaluate.run(config(models=["dpo"], suites=suites), given, work(tmp_path))
    assert len(house.teachers["dpo"].asked) == 4
    shown = ["the truth" in request.messages[-1].content for request in house.teachers["judge"].asked]
    assert shown == [False] * 4 + [True] * 4


def test_answer_loss_is_nats_per_token_over_all_tokens(scored):
    loss = scored[0]["suites"]["loss"]
    assert loss["higher_is_better"] is False
    assert {name: row["mean"] for name, row in loss["models"].items()} == LOSS
    assert loss["models"]["base"]["n"] == 3  # the turn that is not to be learnt is not scored
    assert loss["paired"]["sft-base"]["mean"] == -1.0


def test_answer_loss_weighs_turns_by_their_tokens():
    chats = [Chat(id=str(i), messages=(USER, *says(text))) for i, text in enumerate(["a", "b c d"])]
    observed = answer_loss(local("m"), chats, lambda model, exchanges: [(-5.0, 1), (-3.0, 3)])
    assert [(o.value, o.weight) for o in observed] == [(5.0, 1.0), (1.0, 3.0)]


def test_preference_stands_beside_its_baselines(scored):
    rows = scored[0]["suites"]["preference"]["models"]
    assert {name: row["mean"] for name, row in rows.items()} == {
        "longer answer": (1 + 0 + 0 + 0.5) / 4,
        "sft likelihood": (0 + 1 + 1 + 0.5) / 4,
        "sft likelihood per token": 0.5,
        "base": (0 + 1 + 1 + 0.5) / 4,  # it minds every word more than sft does
        "dpo": (1 + 1 + 0 + 0.5) / 4,
    }
    assert 0 < rows["dpo"]["low"] < 0.625 < rows["dpo"]["high"] < 1
    assert "dpo-longer answer" in scored[0]["suites"]["preference"]["paired"]


def test_answers_are_kept_with_what_was_said_of_them(scored):
    _, lines, _, facts = scored
    assert {(line["suite"], line["model"]) for line in lines} >= {("chat", "base"), ("aspects/honesty", "dpo")}
    line = next(row for row in lines if row["suite"] == "chat" and row["model"] == "dpo" and row["id"] == "q2")
    assert line["category"] == "reasoning"
    assert line["turns"][1] == {
        "user": "And after 2?",
        "assistant": "an answer of quite some words",
        "score": 7.0,
        "judgment": "It has 6 words. Rating: [[7]]",
    }
    assert facts["suites"]["chat"] == {"questions": 16, "scored": 96}


def test_every_value_can_be_read_back(scored, tmp_path):
    found = read_results(tmp_path / "draft")
    assert {name: result.to_json() for name, result in found.items()} == scored[0]["suites"]
    losses = [(row.question, row.part, row.value, row.weight) for row in found["loss"].observations["sft"]]
    assert losses == [("c1", "1", 1.0, 2.0), ("c1", "2", 1.0, 3.0), ("c2", "2", 1.0, 1.0)]


def test_the_same_bytes_twice(house, tmp_path):
    sealed = []
    for name in ("a", "b"):
        job = work(tmp_path / name)
        evaluate.run(config(), everything(tmp_path / name), job)
        sealed.append(
            [(job.path / file).read_bytes() for file in ("scores.json", "answers.jsonl", "observations.jsonl")]
        )
    assert sealed[0] == sealed[1]


def test_missing_answers_and_unread_judgments_lower_the_coverage(house, tmp_path):
    house.teachers["sft"].speak = lambda r: Reply("", "error", "broke") if "0?" in r.messages[-1].content else "fine"
    house.teachers["judge"].speak = lambda r: (
        "no idea" if "And after 1?" in r.messages[-1].content else judge_by_length(r)
    )
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}}
    given = everything(tmp_path, count=5)
    job = work(tmp_path)
    facts = evaluate.run(config(models=["base", "sft"], suites=suites), given, job)
    models = read_json(job.path / "scores.json")["suites"]["chat"]["models"]
    assert (models["sft"]["n"], models["sft"]["coverage"]) == (7, 0.7)
    assert (models["base"]["n"], models["base"]["coverage"]) == (9, 0.9)
    assert models["sft"]["mean"] == 2.0
    assert facts["suites"]["chat"]["unanswered"] == 2
    assert facts["suites"]["chat"]["unread"] == 3


def test_not_applicable_is_not_asked(house, tmp_path):
    house.teachers["judge"].speak = lambda r: (
        "Text 1\nRating: N/A\nRationale: none." if "And after" in r.messages[-1].content else "Rating: 3"
    )
    suites = {"a": {"protocol": "aspects", "questions": "questions", "aspects": ["truthfulness"]}}
    given = everything(tmp_path)
    asked = inputs({"suites.a.questions": given.data["suites.chat.questions"]}, dict(given.models))
    job = work(tmp_path)
    facts = evaluate.run(config(suites=suites), asked, job)
    found = read_json(job.path / "scores.json")["suites"]["a/truthfulness"]["models"]["dpo"]
    assert found == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 16, "coverage": 1.0}
    assert facts["suites"]["a/truthfulness"]["not_applicable"] == 48


def test_a_judge_that_answers_rubbish(house, tmp_path):
    house.teachers["judge"].speak = lambda r: "bananas"
    with pytest.raises(TeacherError, match="judge judge: none of its 96 judgments could be read"):
        evaluate.run(config(), everything(tmp_path), work(tmp_path))
    assert not (tmp_path / "draft" / "scores.json").exists()


class Forgetful(FakeTeacher):
    """A judge whose replies are kept as a journal keeps them: what was asked in the same words and attempt is known."""

    def __init__(self, name, speak):
        super().__init__(name, speak)
        self.known = {}

    def complete(self, requests):
        for request in list(requests):
            for attempt in range(request.attempts):
                key = (request.messages, request.seed, attempt)
                if key not in self.known:
                    self.asked.append(request)
                    self.known[key] = Reply(self.speak(request, attempt))
                if request.accept(self.known[key]):
                    break
            yield self.known[key]


def test_a_judgment_that_could_not_be_read_is_asked_again_when_the_user_says_so(house, tmp_path):
    """Only those, and what is said then takes the place of the first; what was read is not asked for again."""

    def speak(request, attempt):
        hard = "number 3?" in request.messages[-1].content or "number 5?" in request.messages[-1].content
        return "I would rather not say." if hard and (attempt == 0 or "5?" in request.messages[-1].content) else "[[7]]"

    judge = Forgetful("judge", speak)
    house.teachers["judge"] = judge
    given = everything(tmp_path)
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}}
    asked = inputs({"suites.chat.questions": given.data["suites.chat.questions"]}, dict(given.models))

    def run(again):
        job = work(tmp_path / str(again))
        facts = evaluate.run(config(suites=suites, ask_again=again), asked, job)
        lines = [json.loads(one) for one in (job.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
        return facts["suites"]["chat"], read_json(job.path / "scores.json")["suites"]["chat"]["models"]["dpo"], lines

    facts, first, lines = run(0)
    assert (facts["unread"], first["n"], first["mean"]) == (12, 28, 7.0)
    found = failed_judgments(lines)
    assert (found["asked"], found["failed"], found["counts"]) == (96, 12, {"chat": {"base": 4, "sft": 4, "dpo": 4}})
    assert found["examples"][0]["judgment"] == "I would rather not say."
    assert found["examples"][0]["reason"] == "the judgment holds no grade of the form [[x]]"
    paid = len(judge.asked)
    facts, second, lines = run(1)
    assert len(judge.asked) == paid + 12
    assert (facts["unread"], second["n"], second["coverage"]) == (6, 30, 30 / 32)
    assert failed_judgments(lines)["failed"] == 6


def test_a_suite_may_have_a_judge_of_its_own(house, tmp_path):
    house.teachers["strict"] = FakeTeacher("strict", lambda r: "[[1]]")
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "judge": "strict"}}
    given = everything(tmp_path)
    own = inputs(dict(given.data), {**given.models, "suites.chat.judge": endpoint("strict")})
    job = work(tmp_path)
    evaluate.run(config(suites=suites, judge=None), own, job)
    assert read_json(job.path / "scores.json")["suites"]["chat"]["models"]["dpo"]["mean"] == 1.0


def test_a_limit_takes_the_first(house, tmp_path):
    evaluate.run(config(limit=3), everything(tmp_path), work(tmp_path))
    assert len(house.teachers["base"].asked) == 6
    suites = read_json(tmp_path / "draft" / "scores.json")["suites"]
    assert (suites["chat"]["models"]["base"]["n"], suites["preference"]["models"]["dpo"]["n"]) == (6, 3)


def test_no_question_and_the_same_twice(house, tmp_path):
    for name, rows, words in (("none", [], "holds no row"), ("twice", questions(1) * 2, "'q0' stands there twice")):
        given = everything(tmp_path / name)
        bad = inputs(
            {**given.data, "suites.chat.questions": data(tmp_path, f"asked {name}", "prompts", rows)},
            dict(given.models),
        )
        with pytest.raises(DataError, match=words):
            evaluate.run(config(), bad, work(tmp_path / name))


def without_references(folder):
    rows = [row.model_copy(update={"references": ()}) for row in questions(3)]
    return {"protocol": "exact", "questions": "x"}, {"questions": data(folder, "bare", "prompts", rows)}


def with_an_id_twice(folder):
    rows = [Pair(id="p", prompt=(USER,), chosen=says(text), rejected=says("c")) for text in "ab"]
    return {"protocol": "preference", "pairs": "x", "reference": "sft"}, {"pairs": data(folder, "twice", "pairs", rows)}


def with_nothing_to_learn(folder):
    rows = [Chat(id="c", messages=(USER, Message(role="assistant", content="x", train=False)))]
    return {"protocol": "answer_loss", "chats": "x"}, {"chats": data(folder, "idle", "chats", rows)}


def stored(folder, suite, **files):
    """A suite over three questions with these files beside it, by field: the text of each."""
    given = {"questions": data(folder, "asked", "prompts", questions(3))}
    for field, text in files.items():
        path = folder / f"{field}.jsonl"
        path.write_text(text)
        given[field] = Data(path.name, "file", path)
    return {**suite, "questions": "x", **{field: field for field in files}}, given


def with_a_strange_baseline(folder):
    row = {"instruction": "Else?", "output": "x", "generator": "old"}
    return stored(folder, {"protocol": "alpaca_eval"}, baseline=json.dumps(row))


def with_broken_difficulties(folder):
    return stored(folder, {"protocol": "alpaca_eval"}, difficulty='{"difficulty": "x"}')


def with_a_judges_prompt_missing(folder):
    prompt = {"name": "single-v1", "type": "single", "system_prompt": "", "prompt_template": "{question} {answer}"}
    row = {**prompt, "output_format": "[[rating]]"}
    return stored(folder, {"protocol": "mt_bench"}, judge_prompts=json.dumps(row))


def with_judgments_of_another(folder):
    row = {"instruction": "x", "generator_1": "old", "generator_2": "sft", "preference": 1, "annotator": "gpt4"}
    return stored(folder, {"protocol": "alpaca_eval"}, judgments=json.dumps({**row, "output_1": "a", "output_2": "b"}))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (without_references, "can read no reference of 'q0'"),
        (with_an_id_twice, "the id 'p' stands there twice"),
        (with_nothing_to_learn, "no assistant turn that is to be learnt"),
        (with_a_strange_baseline, "answers none of the 3 questions"),
        (with_broken_difficulties, "difficulty.jsonl"),
        (with_a_judges_prompt_missing, "it holds no prompt 'single-v1-multi-turn'"),
        (with_judgments_of_another, "their judge: gpt4; here: judge"),
    ],
)
def test_a_suite_that_cannot_be_measured_is_found_before_anybody_is_asked(house, tmp_path, bad, words):
    """It stands behind a suite that could be, and would have been paid for."""
    suite, files = bad(tmp_path)
    given = everything(tmp_path)
    more = {f"suites.bad.{field}": (value,) for field, value in files.items()}
    models = {**given.models, "suites.bad.judge": (), "suites.bad.reference": (local("sft"),)}
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}, "bad": suite}
    with pytest.raises(DataError, match=words):
        evaluate.run(config(suites=suites), inputs({**given.data, **more}, models), work(tmp_path))
    assert [name for name, teacher in house.teachers.items() if teacher.asked] == []


def test_a_leaderboards_files_are_opened_before_anybody_is_asked(house, tmp_path, monkeypatch):
    def open_tasks(asked):
        raise DataError("arc.jsonl:3", "not a row of arc_challenge", "Mend the row")

    harness = SimpleNamespace(Asked=lambda *named: named, open_tasks=open_tasks)
    monkeypatch.setattr("potstill.stages.suites.leaderboard._harness", lambda name: harness)
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}, "board": {"protocol": "leaderboard"}}
    with pytest.raises(DataError, match="not a row of arc_challenge"):
        evaluate.run(config(suites=suites), everything(tmp_path), work(tmp_path))
    assert [name for name, teacher in house.teachers.items() if teacher.asked] == []


RECIPE = """
name: r
models: {{m: {{path: org/name}}, j: {{endpoint: http://127.0.0.1:9/v1, name: j}}}}
stages:
  e: {{kind: evaluate, models: [m], judge: j, suites: {{right: {suite}}}}}
"""


def recipe(folder, suite):
    path = folder / "r.yaml"
    path.write_text(RECIPE.format(suite=suite))
    return load_recipe(str(path), [])


def test_a_plan_sees_that_a_file_of_questions_has_no_references(tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"prompt": "What is 1 + 1?"}\n')
    suite = "{protocol: exact, questions: %s, checker: number}"
    workspace = Workspace(tmp_path / "run")
    for name, words in (("asked.jsonl", "can read no reference of 'asked-0'"), ("shipped:dialogues", "no reference")):
        asked = name if ":" in name else tmp_path / name
        with pytest.raises(RecipeError, match=words):
            make_plan(recipe(tmp_path, suite % asked), workspace, Hashes(tmp_path / "hashes.json"))


def test_a_plan_claims_no_more_than_is_asked_where_judgments_are_there(tmp_path):
    suite = {"protocol": "mt_bench", "questions": "q", "judgments": "gpt-4_single.jsonl"}
    (said,) = config(suites={"chat": suite}).remarks()
    assert said.startswith("asks for at most that many judgments in 'chat'")
    assert config().remarks() == ()


def test_the_keys_of_a_suite_are_those_of_its_protocol(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown key 'e\.suites\.right\.aspects'") as caught:
        recipe(tmp_path, "{protocol: mt_bench, aspects: [honesty]}")
    keys = "judge, judge_prompts, judgments, protocol, questions, recorded, references, temperatures"
    assert caught.value.remedy == f"The keys here are: {keys}"


def test_temperatures_are_of_categories_that_the_questions_have(house, tmp_path):
    given = everything(tmp_path)
    for number, (category, words) in enumerate(
        {"nope": "Name one of: coding, extraction, humanities, math", "wirting": r"did you mean 'writing'"}.items()
    ):
        suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "temperatures": {category: 0.3}}}
        with pytest.raises(DataError, match=words):
            evaluate.run(config(suites=suites), given, work(tmp_path / str(number)))
    assert not house.teachers["sft"].asked
    suites["chat"]["temperatures"] = {"humanities": 0.3}
    few = replace(given.data["suites.chat.questions"][0], part=(2, 1))
    for rows in (given, replace(given, data={**given.data, "suites.chat.questions": (few,)})):
        # The first two questions have other categories: neither a limit nor a trial, which sees no more, is refused.
        evaluate.run(config(suites=suites, limit=2), rows, work(tmp_path / f"few-{rows is given}"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": None}, "suite 'chat' needs a judge"),
        ({"models": ["a", "a"]}, "twice"),
        ({"models": []}, "suite 'chat' has nobody to measure"),
        ({"suites": ["mt_bench", "mt_bench"]}, "the same protocol stands there twice"),
        ({"suites": ["mt_bench", "bleu"]}, "bleu"),
        (
            {"models": [], "suites": {"a": {"protocol": "alpaca_eval", "recorded": {"x": "y"}}}},
            "suite 'a' has nothing to compare with: name a baseline",
        ),
        *(
            ({"suites": {name: {"protocol": "answer_loss", "chats": "x"}}}, "should match pattern")
            for name in ("a/b", "..", "", "a\0b", "a\n", "x" * 65)
        ),
        ({"suites": {"a": {"protocol": "bleu", "chats": "x"}}}, "mt_bench"),
        ({"suites": {"a": {"protocol": "answer_loss", "chats": "x", "pairs": "y"}}}, "pairs"),
    ],
)
def test_bad_configs(changes, words):
    with pytest.raises(ValidationError, match=words):
        config(**changes)


def test_what_a_plan_expects():
    expected = config().expect(
        {
            "suites.chat.questions": 80,
            "suites.aspects.questions": 80,
            "suites.loss.chats": 50,
            "suites.preference.pairs": 9,
        }
    )
    assert expected.calls == 3 * 160 + 3 * 160 + 2 * 3 * 160
    assert expected.rows == 3 * (80 + 2 * 80)
    assert config(limit=10).expect({"suites.chat.questions": 80}).calls == 3 * 20 + 3 * 20


def test_nothing_in_the_scores_is_a_nan(scored):
    def walk(value):
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        assert not (isinstance(value, float) and math.isnan(value))

    walk(scored[0])
