"""Models known by their answers alone, judgments that are there already, and what others' tools can open."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_fakes import FakeTeacher, House, data, endpoint, inputs, judge_by_length, local, questions, work
from test_compared_suites import fair, first, odds, run, suite

from potstill.artifact import read_json
from potstill.errors import DataError
from potstill.evaluation.alpaca_eval import read_annotations
from potstill.evaluation.continued import take_grades
from potstill.evaluation.fastchat import read_judge_prompts, read_judgments
from potstill.evaluation.judge_prompts import Examiner
from potstill.evaluation.length_control import fit, read_difficulty
from potstill.evaluation.recorded import read_recorded, recorded_sheets
from potstill.evaluation.scores import read_results
from potstill.evaluation.sheets import Sheet, Turn
from potstill.reading.files import read_lines
from potstill.records import Message, Prompt
from potstill.scoring import results
from potstill.sources import Data
from potstill.stages import evaluate
from potstill.stages.suites import base

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the published files of ../shared/data are not here")
ORPO = "mistral-orpo-capybara", "mistral-orpo-mix"


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def file(path):
    return Data(path.name, "file", path)


def fastchat_answers(path, model, count, text="{model} says {i}.{turn}"):
    rows = [
        {
            "question_id": f"q{i}",
            "model_id": model,
            "choices": [{"index": 0, "turns": [text.format(model=model, i=i, turn=turn) for turn in (1, 2)]}],
        }
        for i in range(count)
    ]
    return lines(path, rows)


def evaluated(
    folder, suites, files, *, models=(), judge=judge_by_length, rows=None, judge_name="judge", told=None, **more
):
    """One evaluation: its suites, facts, folder and teachers. `told`: a list for what it says meanwhile."""
    house = House(
        *(FakeTeacher(name, lambda r, name=name: f"{name} to {r.messages[-1].content}") for name in models),
        FakeTeacher(judge_name, judge),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "connect", house.connect)
        config = evaluate.Evaluate.model_validate(
            {"kind": "evaluate", "models": list(models), "judge": judge_name, "suites": suites, **more}
        )
        asked = data(folder, "questions", "prompts", rows or questions(8))
        given = {f"suites.{name}.questions": asked for name in suites} | {
            name: file(path) for name, path in files.items()
        }
        job = replace(work(folder), warn=[].append if told is None else told.append)
        known = {"models": tuple(map(local, models)), "judge": endpoint(judge_name)}
        facts = evaluate.run(config, inputs(given, known), job)
    return read_json(job.path / "scores.json"), facts, job.path, house.teachers


# Recorded answers.


def test_recorded_answers_are_rows_beside_the_models(tmp_path):
    old = fastchat_answers(tmp_path / "old.jsonl", "old", 8, "one two three four five")
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "recorded": {"ours": "old.jsonl"}}}
    scores, _, _, teachers = evaluated(tmp_path, suites, {"suites.chat.recorded.ours": old}, models=("new",))
    assert scores["models"] == ["ours", "new"]
    assert scores["suites"]["chat"]["models"]["ours"]["mean"] == 6.0
    assert set(teachers) == {"new", "judge"}  # nobody called ours was asked
    assert len(teachers["new"].asked) == 16
    assert "new-ours" in scores["suites"]["chat"]["paired"]


def test_an_evaluation_of_recorded_answers_alone_needs_no_model(tmp_path):
    files = {
        f"suites.duel.recorded.{name}": lines(
            tmp_path / f"{name}.json",
            [{"instruction": f"Question number {i}?", "output": f"{name} words", "generator": name} for i in range(8)],
        )
        for name in ("good", "bad")
    }
    baseline = lines(
        tmp_path / "base.json",
        [{"instruction": f"Question number {i}?", "output": "middling words", "generator": "gpt/4"} for i in range(8)],
    )
    suites = {
        "duel": {
            "protocol": "alpaca_eval",
            "questions": "questions",
            "recorded": {"good": "g", "bad": "b"},
            "baseline": "base.json",
        }
    }
    scores, facts, folder, _ = evaluated(tmp_path, suites, {**files, "suites.duel.baseline": baseline}, judge=fair)
    rows = scores["suites"]["duel"]["models"]
    assert {name: row["mean"] for name, row in rows.items()} == {"good": 1.0, "bad": 0.0}
    assert scores["models"] == ["good", "bad"]
    assert facts["notes"]["duel"]["baseline"] == "gpt/4"
    assert facts["notes"]["duel"]["average_length"] == {"gpt/4": 14.0, "good": 10.0, "bad": 9.0}
    assert (folder / "alpaca_eval/duel/gpt_4/model_outputs.json").is_file()  # no folder that a name asks for


def test_our_own_answers_of_an_earlier_evaluation(tmp_path):
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}}
    before, _, folder, _ = evaluated(tmp_path / "a", suites, {}, models=("one", "two"))
    suites["chat"]["recorded"] = {"one": "answers.jsonl"}
    after, *_ = evaluated(tmp_path / "b", suites, {"suites.chat.recorded.one": folder / "answers.jsonl"})
    assert after["suites"]["chat"]["models"]["one"] == before["suites"]["chat"]["models"]["one"]


def test_whose_answers_of_a_file(tmp_path):
    both = lines(
        tmp_path / "both.jsonl",
        [{"instruction": "Hi?", "output": f"says {name}", "generator": name} for name in ("one", "two")],
    )
    asked = [Prompt(id="x", messages=(Message(role="user", content="Hi?"),))]
    assert recorded_sheets("two", read_recorded(both, "both.jsonl", "two"), asked, "both.jsonl")[0].turns == (
        Turn("Hi?", "says two"),
    )
    with pytest.raises(DataError, match=r"it holds the answers of 2 models, and 'three' is none of them.*one, two"):
        read_recorded(both, "both.jsonl", "three")


def test_answers_that_a_file_lacks_are_told(tmp_path):
    old = fastchat_answers(tmp_path / "old.jsonl", "old", 5)
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "recorded": {"ours": "old.jsonl"}}}
    told = []
    evaluated(tmp_path, suites, {"suites.chat.recorded.ours": old}, told=told)
    assert told == ["chat: old.jsonl lacks 6 of 16 answers; none of them is scored"]


def test_what_is_not_recorded_lowers_the_coverage(tmp_path):
    old = fastchat_answers(tmp_path / "old.jsonl", "old", 6)
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "recorded": {"old": "old.jsonl"}}}
    scores, facts, _, _ = evaluated(tmp_path, suites, {"suites.chat.recorded.old": old})
    assert scores["suites"]["chat"]["models"]["old"]["coverage"] == 0.75
    assert facts["suites"]["chat"]["unanswered"] == 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"instruction": "Else?", "output": "x", "generator": "old"}], "answers none of the 8 questions"),
        ([{"instruction": "x", "output": "y"}], "it is like outputs of AlpacaEval, but lacks generator; expected"),
        ([{"prompt": "x"}], "no answer has columns prompt; expected answers of FastChat"),
        ([{"instruction": "x", "output": 3, "generator": "old"}], "old.jsonl:1: 'output' is"),
        ([{"question_id": 1, "model_id": "old", "choices": []}], "'choices' is"),
        ([{"model": "old", "id": "q0", "turns": "x"}], "'turns' is"),
    ],
)
def test_bad_files_of_answers(tmp_path, rows, words):
    old = lines(tmp_path / "old.jsonl", rows)
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "recorded": {"old": "old.jsonl"}}}
    with pytest.raises(DataError, match=words) as caught:
        evaluated(tmp_path, suites, {"suites.chat.recorded.old": old})
    assert "\n" not in str(caught.value)


def test_references_of_a_file_of_their_own(tmp_path):
    """They replace the questions' own, and are shown where the benchmark shows any: in math, not in writing."""
    told = fastchat_answers(tmp_path / "told.jsonl", "gpt-4", 4, "the truth {turn}")
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "references": "told.jsonl"}}
    _, _, _, teachers = evaluated(tmp_path, suites, {"suites.chat.references": told}, models=("one",))
    prompts = [request.messages[-1].content for request in teachers["judge"].asked]
    assert ["the truth 1" in prompt for prompt in prompts] == [False] * 4 + [True] * 4 + [False] * 8
    assert ["the truth 2" in prompt for prompt in prompts] == [False] * 5 + [True, False, True] + [False] * 8
    assert not any("reference 3" in prompt for prompt in prompts)  # the question's own, which the file replaces


# Going on with judgments that are there.


def test_only_the_missing_grades_are_asked_for(tmp_path):
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}}
    before, _, folder, _ = evaluated(tmp_path / "a", suites, {}, models=("one", "two"))
    stored = folder / "fastchat/chat/model_judgment/judge_single.jsonl"
    rows = [json.loads(line) for line in stored.read_text().splitlines()]
    rows[0]["score"] = -1  # it failed: it is not there
    rows[1]["judge"][0] = "somebody else"
    rows[2]["user_prompt"] = rows[2]["user_prompt"].replace("one to", "another answer to")
    kept = lines(tmp_path / "kept.jsonl", rows[:20])
    suites["chat"]["judgments"] = "kept.jsonl"
    after, facts, _, teachers = evaluated(
        tmp_path / "b", suites, {"suites.chat.judgments": kept}, models=("one", "two")
    )
    assert facts["notes"]["chat"]["judgments_taken"] == 17
    assert len(teachers["judge"].asked) == 32 - 17
    assert after["suites"] == before["suites"]


def test_where_nothing_is_missing_no_judge_is_needed(tmp_path):
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "judgments": "x"}}
    before, _, folder, _ = evaluated(
        tmp_path / "a", {"chat": {**suites["chat"], "judgments": None}}, {}, models=("one",)
    )
    stored = folder / "fastchat/chat/model_judgment/judge_single.jsonl"

    def refuses(request):
        raise AssertionError("asked")

    after, *_ = evaluated(tmp_path / "b", suites, {"suites.chat.judgments": stored}, models=("one",), judge=refuses)
    assert after == before


def test_only_the_missing_pairs_are_asked_for(tmp_path):
    before, _, folder, asked = run(tmp_path / "a", fair, suite("mt_bench_pairs"), count=6)
    rows = [
        json.loads(line) for line in (folder / "fastchat/duel/model_judgment/judge_pair.jsonl").read_text().splitlines()
    ]
    rows[0]["g2_winner"] = "error"
    turned = [_turned(row) for row in rows[1:9]]  # another tool may name the baseline first
    kept = lines(tmp_path / "kept.jsonl", [rows[0], *turned, *rows[9:15]])
    after, facts, _, teachers = run(
        tmp_path / "b",
        fair,
        suite("mt_bench_pairs", judgments="kept.jsonl"),
        count=6,
        extra={"suites.duel.judgments": file(kept)},
    )
    assert facts["judgments_taken"] == 14
    assert len(asked["judge"].asked) - len(teachers["judge"].asked) == 2 * 14
    assert after == before


def _turned(row):
    names = {"model_1": "model_2", "model_2": "model_1", "tie": "tie"}
    other = {**row, "model_1": row["model_2"], "model_2": row["model_1"]}
    for ours, theirs in (("g1", "g2"), ("g2", "g1")):
        other |= {f"{ours}_{what}": row[f"{theirs}_{what}"] for what in ("user_prompt", "judgment")}
        other[f"{ours}_winner"] = names[row[f"{theirs}_winner"]]
    return other


@pytest.mark.parametrize("orders", ["drawn", "both"])
def test_only_the_missing_annotations_are_asked_for(tmp_path, orders):
    before, _, folder, asked = run(tmp_path / "a", odds, suite(verdict="logprob", orders=orders), count=6)
    rows = read_json(folder / "alpaca_eval/duel/good/annotations.json")
    rows[0]["preference"] = None
    rows[1]["output_1"] += " and more"
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(rows))
    more = {"verdict": "logprob", "orders": orders, "judgments": "kept.json"}
    after, facts, _, teachers = run(
        tmp_path / "b", odds, suite(**more), count=6, extra={"suites.duel.judgments": file(kept)}
    )
    assert facts["judgments_taken"] == 4
    times = 2 if orders == "both" else 1
    assert len(asked["judge"].asked) - len(teachers["judge"].asked) == 4 * times
    for name, row in after["duel"]["models"].items():
        assert row == pytest.approx(before["duel"]["models"][name], abs=1e-12)  # 1 + share - 1
    other = {**more, "orders": "drawn" if orders == "both" else "both"}
    with pytest.raises(DataError, match=r"all 5 by this judge .* asked otherwise \(baseline, orders\)"):
        run(tmp_path / "c", odds, suite(**other), count=6, extra={"suites.duel.judgments": file(kept)})


SUITES = {"chat": {"protocol": "mt_bench", "questions": "questions", "judgments": "kept.jsonl"}}


def kept_grades(folder):
    """Eight questions of two turns, graded."""
    first = {"chat": {**SUITES["chat"], "judgments": None}}
    *_, made, _ = evaluated(folder, first, {}, models=("one",))
    path = made / "fastchat/chat/model_judgment/judge_single.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_taken_over_and_what_is_asked_is_told_before_it_is_asked(tmp_path):
    rows = kept_grades(tmp_path / "a")
    for row in rows[5:7]:
        row["user_prompt"] = "Other answers."
    kept = lines(tmp_path / "kept.jsonl", rows[:9])
    told = []

    def judge(request):
        said = "chat: 7 judgments are taken over from kept.jsonl, 9 are asked of judge"
        assert told == [f"{said}; 2 that it holds are of other answers"]
        return judge_by_length(request)

    evaluated(tmp_path / "b", SUITES, {"suites.chat.judgments": kept}, models=("one",), judge=judge, told=told)
    assert told


@pytest.mark.parametrize(
    ("change", "words", "answered"),
    [
        ({"judge": ["gpt-4", "x"]}, "their judge: gpt-4; here: judge", False),
        ({"model": "two"}, "their models: two; here: one", False),
        ({"question_id": 81}, "their questions: 81; here: q0, q1, q2 and 5 more", False),
        ({"user_prompt": "Another."}, "all 16 by this judge of these models and questions are of other answers", True),
    ],
)
def test_judgments_of_which_none_can_be_taken_over_are_refused_before_a_judge_is_asked(
    tmp_path, change, words, answered
):
    kept = lines(tmp_path / "kept.jsonl", [{**row, **change} for row in kept_grades(tmp_path / "a")])
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTeacher, "complete", _noting(asked))
        with pytest.raises(DataError, match="leave judgments out to have all asked") as caught:
            evaluated(tmp_path / "b", SUITES, {"suites.chat.judgments": kept}, models=("one",))
    assert words in str(caught.value)
    assert set(asked) == ({"one"} if answered else set())  # of other answers: only the answers tell


def _noting(asked):
    """As teachers answer; who is asked is noted."""
    complete = FakeTeacher.complete

    def noting(self, requests):
        asked.append(self.name)
        return complete(self, requests)

    return noting


def test_judgments_that_all_failed_are_asked_for(tmp_path):
    """They are there to be asked again, and are no mistake."""
    kept = lines(tmp_path / "kept.jsonl", [{**row, "score": -1} for row in kept_grades(tmp_path / "a")])
    _, facts, _, teachers = evaluated(tmp_path / "b", SUITES, {"suites.chat.judgments": kept}, models=("one",))
    assert (facts["notes"]["chat"]["judgments_taken"], len(teachers["judge"].asked)) == (0, 16)


def published_questions():
    rows = [json.loads(line) for line in (SHARED / "mt_bench/question.jsonl").read_text().splitlines()]
    return [
        Prompt(
            id=str(row["question_id"]),
            messages=(Message(role="user", content=row["turns"][0]),),
            follow_ups=tuple(row["turns"][1:]),
            category=row["category"],
        )
        for row in rows
    ]


@needs_shared
def test_a_published_run_is_gone_on_with(tmp_path):
    """Two of the published models: all judgments but the failed one are taken over, and just that one is asked."""
    folder = SHARED / "mt_bench"
    files = {f"suites.chat.recorded.{name}": folder / f"model_answer/{name}.jsonl" for name in ORPO}
    files |= {
        "suites.chat.judgments": folder / "model_judgment/alvarobartt_gpt-4_single.jsonl",
        "suites.chat.judge_prompts": folder / "judge_prompts.jsonl",
        "suites.chat.references": folder / "reference_answer/gpt-4.jsonl",
    }
    chat = {"protocol": "mt_bench", "questions": "questions", "recorded": dict.fromkeys(ORPO, "x")}
    chat |= {"judgments": "x", "judge_prompts": "x", "references": "x"}
    _, facts, sealed, teachers = evaluated(
        tmp_path, {"chat": chat}, files, rows=published_questions(), judge=lambda r: "[[1]]", judge_name="gpt-4"
    )
    stored = read_judgments(read_lines(files["suites.chat.judgments"]), "judgments")
    for name in ORPO:
        there = {(row.question_id, row.turn) for row in stored if row.model == name and row.score is not None}
        first_scores = {}
        for row in stored:
            if row.model == name and row.score is not None:
                first_scores.setdefault((row.question_id, row.turn), row.score)
        values = [one.value for one in read_results(sealed)["chat"].observations[name]]
        assert sum(values) == sum(first_scores.values()) + (160 - len(there))
    assert facts["notes"]["chat"]["judgments_taken"] == 320 - len(teachers["gpt-4"].asked)
    assert len(teachers["gpt-4"].asked) <= 1


@needs_shared
def test_the_benchmarks_own_words_are_asked_word_for_word(tmp_path):
    """With a copy of judge_prompts.jsonl, what is sent is what the published run was sent."""
    folder = SHARED / "mt_bench"
    chat = {"protocol": "mt_bench", "questions": "questions", "recorded": {ORPO[0]: "x"}}
    files = {
        f"suites.chat.recorded.{ORPO[0]}": folder / f"model_answer/{ORPO[0]}.jsonl",
        "suites.chat.judge_prompts": folder / "judge_prompts.jsonl",
        "suites.chat.references": folder / "reference_answer/gpt-4.jsonl",
    }
    _, _, _, teachers = evaluated(
        tmp_path,
        {"chat": {**chat, "judge_prompts": "x", "references": "x"}},
        files,
        rows=published_questions(),
        judge=lambda r: "[[1]]",
    )
    sent = [request.messages[-1].content for request in teachers["judge"].asked]
    stored = read_judgments(read_lines(folder / "model_judgment/alvarobartt_gpt-4_single.jsonl"), "judgments")
    known = {row.user_prompt for row in stored if row.model == ORPO[0]}
    assert len(sent) == 160
    assert sum(prompt in known for prompt in sent) == 160


@needs_shared
def test_references_are_shown_where_the_published_run_showed_them():
    """Its file of questions has reference answers for some of extraction, stem and roleplay too, and lacks one."""
    folder = SHARED / "mt_bench"
    asked = {row.id: row for row in Data("q", "file", folder / "question.jsonl").rows(Prompt)}
    assert sum(any(prompt.references) for prompt in asked.values()) == 39
    words = Examiner("single", 64, 0, {"any": read_judge_prompts(read_lines(folder / "judge_prompts.jsonl"), "p")[0]})
    stored = read_judgments(read_lines(folder / "model_judgment/alvarobartt_gpt-4_single.jsonl"), "judgments")
    sheets = {name: Sheet("chat", "m", prompt) for name, prompt in asked.items()}
    said = {(str(row.question_id), row.turn): row.prompt_name for row in stored}
    other = {name for (name, turn), prompt in said.items() if words.filed_under(sheets[name], turn - 1) != prompt}
    assert [asked[name].category for name in other] == ["coding"]
    assert not any(asked[name].references for name in other)


@needs_shared
def test_grades_of_other_answers_are_not_taken():
    """The published judgments of one model say nothing of another's answers, though a row were named so."""
    folder = SHARED / "mt_bench"
    stored = read_judgments(read_lines(folder / "model_judgment/alvarobartt_gpt-4_single.jsonl"), "judgments")
    other = read_recorded(folder / f"model_answer/{ORPO[1]}.jsonl", "other")
    own = read_recorded(folder / f"model_answer/{ORPO[0]}.jsonl", "own")
    asked = published_questions()
    taken = take_grades(recorded_sheets(ORPO[0], own, asked, "own"), stored, {"gpt-4"}, {})
    assert taken.count >= 159
    shown = recorded_sheets(ORPO[0], other, asked, "other")
    alike = sum(
        all(own.to(sheet.prompt)[at] == sheet.turns[at].assistant for at in range(turn + 1))
        for sheet in shown
        for turn in range(2)
    )
    assert take_grades(shown, stored, {"gpt-4"}, {}).count == alike < 20


def published_wins(folder, judge, baseline):
    """vicuna-13b as published: its answers, that baseline's and that judge's annotations."""
    path = SHARED / "alpaca_eval"
    files = {
        "suites.wins.recorded.vicuna-13b": path / "vicuna-13b/model_outputs.json",
        "suites.wins.baseline": path / f"baselines/{baseline}/model_outputs.json",
        "suites.wins.judgments": path / f"vicuna-13b/{judge}/annotations.json",
        "suites.wins.difficulty": path / "leaderboards/instruction_difficulty_recovered.csv",
    }
    asked = list(Data("questions", "file", files["suites.wins.baseline"]).rows(Prompt))
    wins = {"protocol": "alpaca_eval", "questions": "x", "baseline": "x", "recorded": {"vicuna-13b": "x"}}
    suites = {"wins": {**wins, "judgments": "x", "difficulty": "x"}}
    found = evaluated(folder, suites, files, rows=asked, judge=lambda r: "Better: tie", judge_name=judge)
    return found, files


@needs_shared
def test_a_published_alpaca_eval_run_is_taken_over_whole(tmp_path):
    """Nobody is asked, and its win rate is the published one; at equal length it is what the annotations alone give."""
    judge = "weighted_alpaca_eval_gpt4_turbo"
    (scores, facts, _, teachers), files = published_wins(tmp_path, judge, "gpt4_1106_preview")
    assert (facts["notes"]["wins"]["judgments_taken"], teachers[judge].asked) == (805, [])
    assert scores["suites"]["wins"]["models"]["vicuna-13b"]["mean"] == pytest.approx(0.05831, abs=1e-5)
    annotations = read_annotations(read_lines(files["suites.wins.judgments"]), "x")
    fitted = fit(annotations, read_difficulty(read_lines(files["suites.wins.difficulty"]), "y"), "x")
    row = scores["suites"]["wins/length_controlled"]["models"]["vicuna-13b"]
    expected = (fitted.controlled.win_rate, fitted.low, fitted.high)
    assert [100 * row[part] for part in ("mean", "low", "high")] == pytest.approx(expected, abs=1e-9)
    assert scores["suites"]["wins"]["categories"]
    assert scores["suites"]["wins/length_controlled"]["categories"] == {}  # no parts of a regression's mean are rates


@needs_shared
def test_annotations_of_another_baselines_answers_are_not_taken(tmp_path):
    """The published outputs of text_davinci_003 are not those that GPT-4 once saw: 20 of 805 are the same."""
    (_, facts, _, teachers), files = published_wins(tmp_path, "alpaca_eval_gpt4", "text_davinci_003")
    said = {row["instruction"]: row["output"] for row in json.loads(files["suites.wins.baseline"].read_text())}
    rows = json.loads(files["suites.wins.judgments"].read_text())
    alike = sum(row["output_1"] == said[row["instruction"]] for row in rows)
    same = facts["notes"]["wins"]["same"]
    assert facts["notes"]["wins"]["judgments_taken"] == alike == 20
    assert len(teachers["alpaca_eval_gpt4"].asked) == 805 - 20 - same


# The benchmark's own words.


def prompt_rows():
    """A file of FastChat's form, in words of our own."""
    names = [
        (kind, own, turns) for kind in ("single", "pair") for own in ("v", "math-v") for turns in ("", "-multi-turn")
    ]
    rows = []
    for kind, own, turns in names:
        name = f"{kind}-{own}{2 if (kind, own) == ('pair', 'v') else 1}{turns}"
        blanks = [f"question_{n}" for n in (1, 2)] if turns else ["question"]
        letters = ("_a", "_b") if kind == "pair" else ("",)
        blanks += (
            [f"answer{letter}_{n}" for letter in letters for n in (1, 2)] if turns else [f"answer{x}" for x in letters]
        )
        blanks += ["ref_answer_1"] if own == "math-v" else []
        template = f"{name} {{{{x}}}} " + " | ".join(f"{{{blank}}}" for blank in blanks)
        kind_name = "pairwise" if kind == "pair" else "single"
        rows.append(
            {
                "name": name,
                "type": kind_name,
                "system_prompt": "Judge.",
                "prompt_template": template,
                "output_format": "[[A]]",
            }
        )
    return rows


def test_which_of_the_benchmarks_prompts_is_filled_with_what(tmp_path):
    prompts = lines(tmp_path / "judge_prompts.jsonl", prompt_rows())
    known = {"references": ("ref {x}",), "category": "coding"}
    asked = [one.model_copy(update=known if one.id == "q1" else {}) for one in questions(2)]
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "judge_prompts": "x"}}
    _, _, _, teachers = evaluated(
        tmp_path, suites, {"suites.chat.judge_prompts": prompts}, models=("one",), rows=asked, judge=lambda r: "[[5]]"
    )
    q, a, a_later = "Question number {}?", "one to Question number {}?", "one to And after 1?"
    assert [request.messages[-1].content for request in teachers["judge"].asked] == [
        f"single-v1 {{x}} {q.format(0)} | {a.format(0)}",
        f"single-v1-multi-turn {{x}} {q.format(0)} | And after 0? | {a.format(0)} | one to And after 0?",
        f"single-math-v1 {{x}} {q.format(1)} | {a.format(1)} | ref {{x}}",  # blanks in what is filled in are not filled
        f"single-math-v1-multi-turn {{x}} {q.format(1)} | And after 1? | {a.format(1)} | {a_later} | ref {{x}}",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], "it holds no prompt 'single-v1'"),
        (
            lambda rows: [{**rows[0], "prompt_template": "{answer} {name}"}, *rows[1:]],
            "has a blank 'name'; expected one of: answer",
        ),
        (lambda rows: [{**rows[0], "prompt_template": None}, *rows[1:]], "judge_prompts.jsonl:1"),
    ],
)
def test_bad_files_of_prompts(tmp_path, change, words):
    prompts = lines(tmp_path / "judge_prompts.jsonl", change(prompt_rows()))
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions", "judge_prompts": "x"}}
    with pytest.raises(DataError, match=words):
        evaluated(tmp_path, suites, {"suites.chat.judge_prompts": prompts}, models=("one",))


# What is written can be read.


def same_numbers(path, suite_result):
    """A published file scored again gives the estimates of the evaluation, model by model."""
    (found,) = (one.result for (one,) in results.read_suites(path).values())
    ours, theirs = suite_result.to_json(), found.to_json()
    for name, row in theirs["models"].items():
        assert row == pytest.approx(ours["models"][name])
    return found


def test_what_is_written_scores_the_same_when_it_is_read(tmp_path):
    flaky = lambda r: "bananas" if "number 2?" in r.messages[-1].content else fair(r)  # noqa: E731
    _, _, folder, _ = run(tmp_path / "pairs", flaky, suite("mt_bench_pairs"), count=16)
    found = same_numbers(folder / "fastchat/duel/model_judgment/judge_pair.jsonl", read_results(folder)["duel"])
    assert list(found.observations) == ["good", "bad"]
    assert found.to_json()["categories"].keys() == read_results(folder)["duel"].to_json()["categories"].keys()
    _, _, folder, _ = run(tmp_path / "alpaca", flaky, suite(orders="both"), count=16)
    for name in ("good", "bad"):
        path = folder / f"alpaca_eval/duel/{name}/annotations.json"
        assert list(same_numbers(path, read_results(folder)["duel"]).observations) == [name]
    silent = lambda r: "no idea" if "And after 1?" in r.messages[-1].content else judge_by_length(r)  # noqa: E731
    suites = {"chat": {"protocol": "mt_bench", "questions": "questions"}}
    _, _, folder, _ = evaluated(tmp_path / "chat", suites, {}, models=("one", "two"), judge=silent)
    path = folder / "fastchat/chat/model_judgment/judge_single.jsonl"
    assert same_numbers(path, read_results(folder)["chat"]).to_json()["models"]["one"]["coverage"] == 15 / 16


def test_written_answers_can_be_recorded_ones(tmp_path):
    before, _, folder, _ = run(tmp_path / "a", fair, suite("mt_bench_pairs"), count=6)
    recorded = {name: f"{name}.jsonl" for name in ("good", "bad")}
    files = {f"suites.duel.recorded.{name}": folder / f"fastchat/duel/model_answer/{name}.jsonl" for name in recorded}
    files |= {"suites.duel.baseline": folder / "fastchat/duel/model_answer/middling.jsonl"}
    suites = {"duel": suite("mt_bench_pairs", recorded=recorded, baseline="middling.jsonl")}
    after, *_ = evaluated(tmp_path / "b", suites, files, judge=fair, rows=questions(6))
    assert after["suites"] == before
    shutil.rmtree(folder)


def test_a_place_is_no_answer(tmp_path):
    """A judge that likes a place finds every turn a tie in both orders, whoever the models are."""
    suites, facts, *_ = run(tmp_path, first, suite("mt_bench_pairs"), count=5)
    assert {row["mean"] for row in suites["duel"]["models"].values()} == {0.5}
    assert facts["contradictory"] == 20
