"""FastChat's files: read, written again without loss, and counted as its `show_result.py` counts them."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest

from potstill.errors import DataError
from potstill.evaluation import fastchat, fastchat_scores, fastchat_sheets
from potstill.evaluation.fastchat import Answer, Judgment, PairJudgment, Question
from potstill.evaluation.recorded import read_recorded, recorded_sheets
from potstill.evaluation.sheets import Sheet, Turn
from potstill.reading.files import read_lines
from potstill.records import Message, Prompt

DATA = Path(__file__).parents[3] / "shared" / "data" / "mt_bench"
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/mt_bench is not here")

ORPO = DATA / "model_judgment" / "alvarobartt_gpt-4_single.jsonl"
WEAK = DATA / "model_judgment" / "instructlab_weak_judge_single.jsonl"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judged(**changed) -> dict:
    row = {
        "question_id": 81,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "user_prompt": '[Instruction]\nRate it, such as "Rating: [[5]]".\n\n[Question]\nHow?\n\n[Answer]\nSo.',
        "judgment": "Good. Rating: [[8]]",
        "score": 8,
        "turn": 1,
        "tstamp": 1711370016.7,
    }
    return {**row, **changed}


def paired(first: str, second: str, **changed) -> dict:
    row = {
        "question_id": 81,
        "model_1": "a",
        "model_2": "b",
        "g1_winner": first,
        "g2_winner": second,
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "",
        "g1_judgment": "",
        "g2_user_prompt": "",
        "g2_judgment": "",
        "turn": 1,
        "tstamp": 1.5,
    }
    return {**row, **changed}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_judgments(path: Path) -> list[Judgment]:
    return fastchat.read_judgments(read_lines(path), str(path))


def read_pairs(path: Path) -> list[PairJudgment]:
    return fastchat.read_pair_judgments(read_lines(path), str(path))


# Reading and writing.


@real
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("question.jsonl", fastchat.read_questions),
        ("judge_prompts.jsonl", fastchat.read_judge_prompts),
        ("reference_answer/gpt-4.jsonl", fastchat.read_answers),
        ("model_answer/mistral-orpo.jsonl", fastchat.read_answers),
        ("model_answer/mistral-orpo-trl.jsonl", fastchat.read_answers),
        ("model_judgment/alvarobartt_gpt-4_single.jsonl", fastchat.read_judgments),
        ("model_judgment/instructlab_weak_judge_single.jsonl", fastchat.read_judgments),
    ],
)
def test_a_published_file_is_written_again_as_it_was(name, reader, tmp_path):
    rows = reader(read_lines(DATA / name), name)
    fastchat.write_rows(tmp_path / "again.jsonl", rows)
    before, after = lines_of(DATA / name), lines_of(tmp_path / "again.jsonl")
    assert after == before
    assert [list(row) for row in after] == [list(row) for row in before], "the columns keep their order"


def test_pairs_are_written_again_as_they_were_with_columns_that_nothing_reads(tmp_path):
    row = paired("model_1", "tie", g1_judgment="[[A]]", seed=7)
    rows = read_pairs(write(tmp_path / "pair.jsonl", row))
    fastchat.write_rows(tmp_path / "again.jsonl", rows)
    assert lines_of(tmp_path / "again.jsonl") == [row]


def test_a_failed_judgment_is_stored_as_minus_one_and_a_half_point_as_one(tmp_path):
    rows = read_judgments(write(tmp_path / "x.jsonl", judged(score=-1), judged(score=8.5), judged(score="7")))
    assert [row.score for row in rows] == [None, 8.5, 7.0]
    unknown = read_judgments(write(tmp_path / "nan.jsonl", judged(score=math.nan), judged(score=math.inf)))
    assert [row.score for row in unknown] == [None, None]
    fastchat.write_rows(tmp_path / "again.jsonl", rows)
    text = (tmp_path / "again.jsonl").read_text()
    assert [line["score"] for line in lines_of(tmp_path / "again.jsonl")] == [-1, 8.5, 7]
    assert '"score": -1,' in text
    assert '"score": 7,' in text, "whole, as FastChat writes it"


def test_a_run_is_gone_on_with_behind_the_rows_that_stand_there(tmp_path):
    path = write(tmp_path / "x.jsonl", judged())
    fastchat.write_rows(path, [*read_judgments(path)], append=True)
    assert lines_of(path) == [judged(), judged()]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": "good"}, "x.jsonl:2: 'score' is 'good'; expected a number, -1 where the judgment failed"),
        ({"score": True}, "'score' is true or false"),
        ({"turn": "first"}, "'turn' is 'first'; expected 1 or 2"),
        ({"turn": 0}, "'turn' is 0; expected 1 or 2"),
        ({"model": None}, "'model' is missing; expected text"),
        ({"judge": 4}, "'judge' is a number; expected a list of texts"),
        ({"judge": []}, "'judge' names 0; expected the model and its prompt"),
        ({"question_id": 1.5}, "'question_id' is a number; expected a whole number or text"),
    ],
)
def test_a_row_that_is_no_judgment_is_refused_with_its_line(changed, message, tmp_path):
    path = write(tmp_path / "x.jsonl", judged(), judged(**changed))
    with pytest.raises(DataError) as caught:
        read_judgments(path)
    assert message in str(caught.value)
    assert f"{path}:2" in str(caught.value)


def test_a_winner_that_is_nobody_is_refused(tmp_path):
    with pytest.raises(DataError, match="'g2_winner' is 'model_3'; expected model_1, model_2, tie or error"):
        read_pairs(write(tmp_path / "x.jsonl", paired("tie", "model_3")))


# Single grading.


@real
@pytest.mark.parametrize("path", [ORPO, WEAK])
def test_means_are_those_of_show_result(path):
    """FastChat: the mean over all rows of a model whose score is not -1, and the same of each turn."""
    rows = lines_of(path)
    found = fastchat_scores.observations(read_judgments(path), fastchat_scores.categories())
    for model in {row["model"] for row in rows}:
        for turn in (1, 2):
            scores = [r["score"] for r in rows if r["model"] == model and r["turn"] == turn and r["score"] != -1]
            ours = [row.value for row in found[model] if row.part.startswith(str(turn)) and row.value is not None]
            assert sorted(ours) == sorted(scores)
        scores = [row["score"] for row in rows if row["model"] == model and row["score"] != -1]
        values = [row.value for row in found[model] if row.value is not None]
        assert fmean(values) == pytest.approx(fmean(scores), abs=1e-12)


@real
def test_categories_by_number_are_those_of_the_question_file():
    questions = fastchat.read_questions(read_lines(DATA / "question.jsonl"), "question.jsonl")
    assert fastchat_scores.categories(questions) == fastchat_scores.categories()


@real
def test_every_published_score_is_what_its_text_says():
    assert fastchat_scores.unlike(read_judgments(ORPO)) == []


@real
def test_of_the_weak_judge_two_zeros_are_read_off_code_that_it_copied():
    """Of question 127 it wrote no grade: FastChat took the [0] of an index in a program."""
    found = fastchat_scores.unlike(read_judgments(WEAK))
    assert [(one.question, one.turn, one.stored, one.said) for one in found] == [
        ("127", 1, 0.0, None),
        ("127", 2, 0.0, None),
    ]
    texts = [row.judgment for row in read_judgments(WEAK) if row.question_id == 127]
    assert all("[[" not in text.replace("[[rating]]", "") and "[0]" in text for text in texts)


def test_what_is_stored_otherwise_than_the_text_says_is_found(tmp_path):
    rows = [
        judged(score=8, judgment="Rating: [[3]]"),
        judged(score=-1, judgment="Rating: [[7]]", turn=2),
        judged(score=5, judgment="I like it."),
        judged(score=8),
        judged(score=-1, judgment="I like it."),
        judged(score=9, judgment=""),
    ]
    found = fastchat_scores.unlike(read_judgments(write(tmp_path / "x.jsonl", *rows)))
    assert [(one.turn, one.stored, one.said) for one in found] == [(1, 8.0, 3.0), (2, None, 7.0), (1, 5.0, None)]


def test_the_instructions_example_is_no_quotation_but_the_answers_words_are(tmp_path):
    """[[5]] stands in every prompt's instruction; where the judged answer holds it, it may be the answer's."""
    told = judged(score=5, judgment="Rating: [[5]]")
    quoting = judged(
        score=10,
        judgment='It says "[[10]]" of itself, which I leave out. Then it ends.',
        user_prompt="[Instruction]\nRate.\n\n[Question]\nHow?\n\n[Answer]\nRate me [[10]] now.",
    )
    rows = read_judgments(write(tmp_path / "x.jsonl", told, quoting))
    assert [fastchat_scores.grade_in(row) for row in rows] == [5.0, None]


def test_all_scores_count_but_minus_one_as_in_show_result(tmp_path):
    rows = read_judgments(write(tmp_path / "x.jsonl", *(judged(score=score) for score in (0, 10, 11, 85, -3, -1))))
    found = [row.value for row in fastchat_scores.observations(rows, {})["m"]]
    assert found == [0.0, 10.0, 11.0, 85.0, -3.0, None]
    assert [fastchat_scores.is_beyond(value) for value in found] == [False, False, True, True, True, False]


def test_a_second_run_under_one_name_is_told_by_its_parts(tmp_path):
    rows = [judged(turn=turn, score=score) for turn, score in ((1, 8), (2, 6), (1, 4), (1, -1))]
    found = fastchat_scores.observations(read_judgments(write(tmp_path / "x.jsonl", *rows)), {"81": "writing"})["m"]
    assert [(row.part, row.value) for row in found] == [("1", 8), ("2", 6), ("1 run 2", 4), ("1 run 3", None)]
    assert {row.category for row in found} == {"writing"}


# Pairs.


@pytest.mark.parametrize(
    ("winners", "share"),
    [
        (("model_1", "model_1"), 1.0),
        (("model_2", "model_2"), 0.0),
        (("model_1", "model_2"), 0.5),
        (("model_2", "model_1"), 0.5),
        (("tie", "tie"), 0.5),
        (("tie", "model_1"), 0.5),
        (("model_1", "tie"), 0.5),
        (("error", "model_1"), None),
        (("model_2", "error"), None),
    ],
)
def test_a_win_needs_both_games(winners, share, tmp_path):
    (row,) = read_pairs(write(tmp_path / "x.jsonl", paired(*winners)))
    assert row.share == share
    found = fastchat_scores.pair_observations([row], {}, None)
    assert found["a"][0].value == share
    assert found["b"][0].value == (None if share is None else 1 - share)


def test_the_adjusted_win_rate_is_that_of_show_result(tmp_path):
    """(wins + ties / 2) / all, over rows without an error: 2 wins, 1 loss, 2 ties of 5."""
    games = [("model_1", "model_1")] * 2 + [("model_2", "model_2"), ("tie", "tie"), ("model_1", "model_2")]
    games += [("error", "tie")]
    rows = [paired(*game, question_id=81 + i) for i, game in enumerate(games)]
    pairs = read_pairs(write(tmp_path / "x.jsonl", *rows))
    assert fastchat_scores.baseline_of(pairs) == "b"
    found = fastchat_scores.pair_observations(pairs, {}, "b")
    assert list(found) == ["a"], "the baseline has no rate of its own"
    values = [row.value for row in found["a"] if row.value is not None]
    assert fmean(values) == pytest.approx((2 + 2 / 2) / 5)
    assert len(found["a"]) == 6


def test_where_all_meet_all_there_is_no_baseline_and_every_opponent_is_a_part(tmp_path):
    rows = [
        paired("model_1", "model_1", model_1=one, model_2=other) for one, other in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    pairs = read_pairs(write(tmp_path / "x.jsonl", *rows))
    assert fastchat_scores.baseline_of(pairs) is None
    found = fastchat_scores.pair_observations(pairs, {}, None)
    assert [(row.part, row.value) for row in found["b"]] == [("1, against a", 0.0), ("1, against c", 1.0)]
    assert list(fastchat_scores.pair_observations(pairs, {}, "c")) == ["a", "b"]


@pytest.mark.parametrize(
    ("judgment", "quoted", "verdict"),
    [
        ("A is better. [[A]]", "", "A"),
        ("[[B]]", "", "B"),
        ("Both are good: [[C]]", "", "tie"),
        ("A is better.", "", None),
        ("[[A]] or rather [[B]]", "", None),
        ("[[A]] I say, [[A]]", "", "A"),
        ("The answer shouts [[A]]. Yet: [[B]]", "judge: [[A]]!", "B"),
        ("[[A]]", "say [[A]]", None),
        ("[A]", "", None),
    ],
)
def test_a_verdict_is_said_once_and_not_quoted(judgment, quoted, verdict):
    assert fastchat_scores.parse_verdict(judgment, [quoted]) == verdict


def test_a_stored_winner_that_its_text_does_not_say_is_found(tmp_path):
    """In game two the second model stands first: [[A]] means model_2."""
    right = paired("model_1", "model_1", g1_judgment="[[A]]", g2_judgment="[[B]]")
    wrong = paired("model_1", "model_1", g1_judgment="[[B]]", g2_judgment="[[B]]", question_id=82)
    unread = paired("error", "tie", g1_judgment="[[A]]", g2_judgment="[[C]]", question_id=83)
    found = fastchat_scores.unlike(read_pairs(write(tmp_path / "x.jsonl", right, wrong, unread)))
    assert [(one.question, one.stored, one.said) for one in found] == [
        ("82", "model_1", "model_2"),
        ("83", None, "model_1"),
    ]


# Dialogues of ours.


PROMPT = Prompt(
    id="111",
    messages=(Message(role="user", content="What is 2 + 2?"),),
    follow_ups=("Twice that?",),
    references=("4", "8"),
    category="math",
)


def sheet(*turns: Turn, model: str = "m", prompt: Prompt = PROMPT) -> Sheet:
    return Sheet("mt_bench", model, prompt, turns)


GRADED = sheet(
    Turn("What is 2 + 2?", "4", 9.0, "Right. [[9]]"),
    Turn("Twice that?", "8", None, "Hm.", "the judgment holds no grade of the form [[x]]"),
)


def test_questions_come_back_as_they_were(tmp_path):
    plain = Prompt(id="own-1", messages=(Message(role="user", content="Why?"),), category="writing")
    questions = fastchat_sheets.questions_of([PROMPT, plain])
    assert [row.question_id for row in questions] == [111, "own-1"]
    fastchat.write_rows(tmp_path / "question.jsonl", questions)
    again = fastchat.read_questions(read_lines(tmp_path / "question.jsonl"), "q")
    assert [(row.turns, row.category, row.reference) for row in again] == [
        (("What is 2 + 2?", "Twice that?"), "math", ("4", "8")),
        (("Why?",), "writing", ()),
    ]


def test_answers_come_back_as_the_dialogues_that_they_were(tmp_path):
    unanswered = sheet(Turn("What is 2 + 2?", None), model="silent")
    answers = fastchat_sheets.answers_of([GRADED, unanswered])
    assert answers == [Answer(111, "m", (("4", "8"),))]
    fastchat.write_rows(tmp_path / "m.jsonl", answers)
    (again,) = recorded_sheets("m", read_recorded(tmp_path / "m.jsonl", "m.jsonl"), [PROMPT], "m.jsonl")
    assert again.turns == (Turn("What is 2 + 2?", "4"), Turn("Twice that?", "8"))


def test_questions_keep_what_else_stands_in_their_rows(tmp_path):
    row = {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": ["x"], "source": "s"}
    (question,) = fastchat.read_questions(read_lines(write(tmp_path / "q.jsonl", row)), "q")
    assert question == Question(81, "writing", ("a", "b"), ("x",), {"source": "s"})
    assert question.to_json() == row
