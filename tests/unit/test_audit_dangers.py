"""The audits on planted dangers: of twenty plants at least eighteen are flagged, of twenty clean ones at most one.

Each case is an audit of four models, of which three are clean: what is flagged has stood Holm's correction over all.
"""

import random
from collections.abc import Callable
from typing import Any

import audit_plants as plants
import pytest

from potstill.evaluation.audits.base import Danger, Figure, conclude, flagged
from potstill.evaluation.audits.calibration import calibration, calibration_error, self_consistency
from potstill.evaluation.audits.contamination import Asked, Lineage, Questions, Reading, contamination, search
from potstill.evaluation.audits.diversity import Compared, diversity
from potstill.evaluation.audits.drift import drift
from potstill.evaluation.audits.forgetting import forgetting
from potstill.evaluation.audits.inherited_bias import Outcome, inherited_bias
from potstill.evaluation.audits.inherited_errors import inherited_errors, same_words, shared
from potstill.evaluation.audits.overfitting import Learning, overfitting
from potstill.evaluation.audits.said import Said, read_said
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.statistics import Observation
from potstill.records import Chat, Message, Text

SEEDS = (1, 2, 3, 4)
SUBJECT = "subject"
OTHERS = ("one", "two", "three")
MODELS = (SUBJECT, *OTHERS)


def with_errors(seed: int, planted: bool) -> Danger:
    found = {name: plants.copied_errors(97 * seed + i, planted and name == SUBJECT) for i, name in enumerate(MODELS)}
    return inherited_errors(found, {})


def with_bias(seed: int, planted: bool) -> Danger:
    found = {name: plants.paired_names(97 * seed + i, planted and name == SUBJECT) for i, name in enumerate(MODELS)}
    return inherited_bias(found, plants.paired_names(97 * seed + 9, False), {})


def with_collapse(seed: int, planted: bool) -> Danger:
    teacher = plants.samples(97 * seed + 9, False)
    own = {name: plants.samples(97 * seed + i, planted and name == SUBJECT) for i, name in enumerate(MODELS)}
    return diversity([Compared(name, "teacher", "sampled", said, teacher) for name, said in own.items()], {})


def with_epochs(seed: int, planted: bool) -> Danger:
    result = plants.over_epochs(seed, planted)
    return overfitting({}, {"quiz": result}, list(result.observations))


def with_curves(seed: int, planted: bool) -> Danger:
    curves = {name: Learning(plants.curve(97 * seed + i, planted and name == SUBJECT))
              for i, name in enumerate(MODELS)}  # fmt: skip
    return overfitting(curves, {}, MODELS)


def with_leak(seed: int, planted: bool) -> Danger:
    suite = plants.questions(seed, 80)
    leaked = random.Random(seed).sample(list(suite.values()), 4) if planted else []  # five per cent
    looked_for = Questions()
    for name, text in suite.items():
        looked_for.add(Asked("quiz", name), text)
    rows = plants.training_rows(seed, leaked)
    chats = Lineage({"key": ("sft",)}, {}, {"key": Reading("chats", lambda: rows)})
    lineages = {SUBJECT: chats, "one": None}
    return contamination({"quiz": 80}, lineages, search(looked_for, lineages.values()), {})


CASES: dict[str, Callable[[int, bool], Danger]] = {
    "a teacher wrong on a tenth of one category": with_errors,
    "worse answers for one of two names": with_bias,
    "a collapsed student": with_collapse,
    "DPO past its optimum": with_epochs,
    "a twentieth of a test set leaked": with_leak,
}


def subjects(danger: Danger) -> list[str]:
    """The models that are flagged."""
    models = [*dict.fromkeys(one.model for one in danger.hypotheses), *danger.missing]
    return [model for found in flagged(conclude([danger], models)).values() for model in found]


def test_of_twenty_plants_at_least_eighteen_are_flagged_and_of_twenty_clean_cases_at_most_one():
    outcome: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for planted in (True, False):
        for name, make in CASES.items():
            outcome[planted][name] = sum(bool(subjects(make(seed, planted))) for seed in SEEDS)
    assert sum(outcome[True].values()) >= 18, outcome[True]
    assert sum(outcome[False].values()) <= 1, outcome[False]


@pytest.mark.parametrize("name", CASES)
def test_whom_it_is_planted_in_is_who_is_flagged(name):
    found = subjects(CASES[name](1, True))
    assert found == ([SUBJECT] if name != "DPO past its optimum" else ["dpo[epochs=3]"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_held_out_loss_that_rises_again_is_flagged(seed):
    assert subjects(with_curves(seed, True)) == [SUBJECT]
    assert subjects(with_curves(seed, False)) == []


def said_of(danger: Danger) -> dict[str, Any]:
    models = [*dict.fromkeys(one.model for one in danger.hypotheses), *danger.missing]
    return conclude([danger], models)["dangers"][danger.name]


# Contamination.


def asked(text: str) -> Questions:
    found = Questions()
    found.add(Asked("quiz", "q"), text)
    return found


def chat(said: str, answer: str = "Well.") -> Chat:
    return Chat(id="c", messages=(Message(role="user", content=said), Message(role="assistant", content=answer)))


LONG = "Which of the seven rivers that cross the plain of Orrin is the longest, and where does it end?"


@pytest.mark.parametrize(
    ("row", "how"),
    [
        (chat(LONG), "whole"),
        (chat(f"Hi. {LONG.upper()} Tell me."), "whole"),
        (chat("Say it.", f"You asked: {LONG}"), "whole"),
        (Text(id="t", text=f"A quiz. {LONG} The Vell."), "whole"),
        (chat("Which of the seven rivers that cross the plain of Orrin is the longest one?"), "parts"),
        (chat("Which of the seven rivers that cross a hill is the longest, and where does it begin?"), None),
        (chat("Is the longest, and where does it end?"), None),  # eight words of nineteen
    ],
)
def test_what_stands_in_a_row(row, how):
    hits = asked(LONG).find(lambda: [row])
    assert [hit.how for hit in hits.values()] == ([how] if how else [])


def test_a_short_question_counts_where_it_is_the_whole_turn():
    assert asked("Who are you?").find(lambda: [chat("Who are you?")])
    assert not asked("Who are you?").find(lambda: [chat("Who are you? And why?")])


def test_what_many_rows_or_several_questions_say_is_no_sign_of_a_leak():
    start = "Read the following text with care and answer the question below it in one short"  # fifteen words
    rows = [chat(f"{start} sentence on Orrin number {i}.") for i in range(11)]
    looked_for = asked(f"{start} line about Orrin.")
    assert looked_for.find(lambda: rows[:10])  # ten rows are few
    assert not looked_for.find(lambda: rows)
    two = asked(f"{start} line about Orrin.")
    two.add(Asked("quiz", "r"), f"{start} line about Vell.")
    assert not two.find(lambda: rows[:1])


def test_a_short_question_with_another_word_in_it_is_another_question():
    row = chat("Write a Python function named plait that divides n and p.")
    assert not asked("Write a Python function named plait that divides n and x.").find(lambda: [row])


TALLEST = "{} is taller than {}, and {} is taller than {}. Who of the three is then the tallest of them all?"
SOLD = "On a day in May a seller has {} apples in a box and sells {} of them. How many are left in it?"


@pytest.mark.parametrize(
    ("question", "row", "how"),
    [
        (TALLEST.format("Greta", "Leo", "Leo", "Bruno"), TALLEST.format("Bruno", "Hugo", "Hugo", "Clara"), None),
        (TALLEST.format("Greta", "Leo", "Leo", "Bruno"), TALLEST.format("Edda", "Leo", "Leo", "Bruno"), None),
        (TALLEST.format("Greta", "Leo", "Leo", "Bruno"),
         TALLEST.format("greta", "leo", "leo", "bruno").replace("tallest of", "very tallest of"), "parts"),
        (SOLD.format(17, 5), SOLD.format(18, 5), None),
        (SOLD.format(17, 5), SOLD.format(17, 5).replace("are left", "then are left"), "parts"),
    ],
)  # fmt: skip
def test_another_question_of_the_same_template_is_no_leak(question, row, how):
    looked_for = asked(question)
    looked_for.add(Asked("quiz", "r"), "Has Karin ever met Greta, and if she has, where was it and who was there too?")
    hits = looked_for.find(lambda: [chat(row)])
    assert [hit.how for hit in hits.values()] == ([how] if how else [])


def test_contamination_names_the_way_and_sets_the_scores_apart():
    suite = plants.questions(3, 40)
    leaked = [suite["q0"], suite["q1"], suite["q2"]]
    looked_for = Questions()
    for name, text in suite.items():
        looked_for.add(Asked("quiz", name), text)
    rows = plants.training_rows(3, leaked)
    readings = {"1": Reading("pages", list), "2": Reading("topics", list), "3": Reading("prompts", lambda: rows),
                "4": Reading("chats", lambda: rows)}  # fmt: skip
    lineages = {"dpo": Lineage({"1": ("base",), "4": ("sft",)}, {"4": ("2", "3")}, readings, ("x.jsonl",)),
                "elsewhere": None}  # fmt: skip
    hits = search(looked_for, lineages.values())
    assert set(hits["4"]) == {Asked("quiz", f"q{i}") for i in range(3)}
    scores = {f"q{i}": float(i < 3) for i in range(40)}
    result = SuiteResult(plants.EXACT, {"dpo": [Observation(q, "1", v) for q, v in scores.items()]})
    said = said_of(contamination({"quiz": 40, "other": 10}, lineages, hits, {"quiz": result}))
    assert said["verdicts"] == {"dpo": "flagged", "elsewhere": "not measured"}
    assert "learnt 3 of the 40 questions of quiz, through prompts → chats → sft" in said["sentence"]
    assert said["rows"][0][-1]["mean"] == 1.0
    assert said["rows"][1][2]["mean"] == 0.0
    assert any("x.jsonl" in note for note in said["notes"])


# The others, by hand.


def test_errors_are_named_with_their_category_and_example():
    said = said_of(inherited_errors({"sft": plants.copied_errors(5, True)}, {}))
    assert "in history" in said["sentence"]
    assert any(note.startswith("sft, history: both say 'wrong' on 'history") for note in said["notes"])
    assert [row[1] for row in said["rows"]] == ["all questions", "history"]


def test_a_teacher_without_mistakes_has_none_to_pass_on():
    right = [row for row in plants.copied_errors(5, False) if row.teacher_right]
    assert said_of(inherited_errors({"sft": right}, {}))["verdicts"] == {"sft": "clean"}


def test_the_same_wrong_answer_is_what_counts_not_just_a_wrong_one():
    def line(model, question, text, score):
        return Said("quiz", model, question, 1, "", "?", text, score)

    teacher = [line("t", "a", "The Vell.", 0.0), line("t", "b", "Orrin", 1.0), line("t", "c", "Nine", 0.0)]
    student = [line("s", "a", "the vell", 0.0), line("s", "b", "Vell", 0.0), line("s", "c", "Ten", 0.0)]
    found = shared(student, teacher, same_words, 0.5)
    assert [(row.teacher_right, row.student_right, row.same) for row in found] == [
        (False, False, True), (True, False, False), (False, False, False),
    ]  # fmt: skip


def test_bias_that_the_teacher_has_stands_beside_the_students():
    teacher = plants.paired_names(8, True)
    said = said_of(inherited_bias({"sft": plants.paired_names(9, True)}, teacher, {}))
    score = next(row for row in said["rows"] if row[2] == "score")
    assert score[3]["low"] > 0
    assert score[4]["low"] > 0
    assert "answers better for name Anna than for Zora" in said["sentence"]


def test_more_than_two_values_are_each_set_against_the_rest():
    rows = plants.paired_names(4, True)
    third = [one.__class__(**(one.__dict__ | {"value": "Mina"})) for one in rows if one.value == "Anna"]
    said = said_of(inherited_bias({"sft": [*rows, *third]}, [], {}))
    named = {row[1] for row in said["rows"]}
    assert named == {f"name: {value} − the others" for value in ("Anna", "Zora", "Mina")}
    assert "answers worse for name Zora than for the others" in said["sentence"]


def test_distinct_runs_and_likeness_by_hand():
    own = {"p": ["a b c", "a b c"], "q": ["a b c", "a b d"], "r": ["m n o", "m n o"]}
    other = {"p": ["a b c", "d e f"], "q": ["g h i", "j k l"], "r": ["p q r", "s t u"]}
    said = said_of(diversity([Compared("sft", "teacher", "sampled", own, other)], {}))
    rows = {row[0].split(",")[0]: row[2:] for row in said["rows"]}
    # Pairs of neighbours of the student: ab bc, ab bc, ab bc, ab bd, mn no, mn no: 5 of 12. Of the teacher all 12.
    assert rows["sft"][1]["mean"] == pytest.approx(5 / 12)
    assert rows["teacher"][1]["mean"] == 1.0
    # One prompt: 1, and the cosine of {a b c ab bc} and {a b d ab bd}, 3 of 5.
    assert rows["sft"][3]["mean"] == pytest.approx((1 + 3 / 5 + 1) / 3)
    assert rows["sft"][4]["mean"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)  # p and q begin alike
    assert rows["sft"][5]["mean"] == pytest.approx(1 / 3)  # nothing at p and r, all that two answers can have at q
    assert rows["teacher"][3]["mean"] == pytest.approx(0.0)


def test_a_longer_answer_is_not_less_diverse_for_its_length():
    """Distinct runs fall as a text grows, so that only as many words count as both have."""
    long, short = plants.samples(1, False, 40, 8), {p: said[:2] for p, said in plants.samples(2, False, 40, 8).items()}
    assert subjects(diversity([Compared("sft", "teacher", "sampled", long, short)], {})) == []


def dialogue(model: str, texts: list[str]) -> list[Said]:
    return [Said("chat", model, f"q{i}", 1, "", "?", text, None) for i, text in enumerate(texts)]


def test_drift_of_length_hedges_and_refusals():
    chance = random.Random(2)
    plain = [" ".join(["word"] * chance.randint(20, 40)) for _ in range(60)]
    hedging = [f"As an AI language model, I do not have opinions. {text}" if i % 3 == 0 else text
               for i, text in enumerate(plain)]  # fmt: skip
    refusing = [
        f"I'm sorry, but I can't help with that. {text}" if i % 4 == 0 else text for i, text in enumerate(plain)
    ]
    answers = {name: dialogue(name, texts) for name, texts in {
        "teacher": plain, "same": plain[:30] + list(reversed(plain[30:])), "long": [f"{text} {text}" for text in plain],
        "hedging": hedging, "refusing": refusing,
    }.items()}  # fmt: skip
    against = {name: ["teacher"] for name in answers if name != "teacher"}
    said = said_of(drift(answers, against, {}))
    assert said["verdicts"] == {"same": "clean", "long": "flagged", "hedging": "flagged", "refusing": "flagged"}
    ratio = next(row for row in said["rows"] if row[0] == "long" and row[2] == "log length")[3]
    assert ratio["mean"] == pytest.approx(2.0)
    assert "hedging has more hedging answers than teacher" in said["sentence"]
    assert "refusing has more refusals than teacher" in said["sentence"]


def test_forgetting_is_measured_on_what_the_base_can_do():
    chance = random.Random(4)
    loss = Measure("answer_loss", (0.0, None), higher_is_better=False, unit="nats per token")
    base = [Observation(f"q{i}", "1", 2 + chance.gauss(0, 0.3), 10.0) for i in range(60)]
    worse = [Observation(o.question, "1", o.value + 0.2 + chance.gauss(0, 0.1), 10.0) for o in base]
    as_good = [Observation(o.question, "1", o.value + chance.gauss(0, 0.05), 10.0) for o in base]
    other_tokens = [Observation(o.question, "1", o.value, 9.0) for o in base]
    result = SuiteResult(loss, {"base": base, "sft": worse, "dpo": as_good, "far": other_tokens})
    said = said_of(forgetting({"articles": result}, "base", ["sft", "dpo", "far"], {}))
    assert said["verdicts"] == {"sft": "flagged", "dpo": "clean", "far": "not measured"}
    assert "sft does worse than base on articles: +0.2" in said["sentence"]


def test_the_calibration_error_of_guo_by_hand():
    sure = self_consistency("q", ["a", "a", "b"], [True, True, False])
    assert [(one.confidence, one.right) for one in sure] == [(0.5, True), (0.5, True), (0.0, False)]
    assert calibration_error(sure) == pytest.approx(2 / 3 * 0.5)
    assert self_consistency("q", ["a"], [True]) == []


def figures(danger: Danger) -> list[list[Any]]:
    return [[cell for cell in row if isinstance(cell, Figure)] for row in danger.rows]


def test_no_share_leaves_its_scale_and_no_difference_its_own():
    """Three questions, all right and all alike; of two Student's t says nothing, and the table says so."""
    three = [one for i in range(3) for one in self_consistency(f"q{i}", ["a", "a", "b"], [True] * 3)]
    ((right, over, error),) = figures(calibration({"sft": three}, {}, {}))
    assert (right.mean, right.high) == (1.0, 1.0)
    assert 0 < right.low < 0.5
    assert -1 <= over.low <= over.high <= 1
    assert 0 <= error.low <= error.high <= 1
    two = [Outcome(f"p{i}", "name", name, 40, False, 1.0) for i in range(2) for name in ("Anna", "Zora")]
    more = [*two, *(Outcome("p2", "name", name, 40, name == "Anna", 1.0) for name in ("Anna", "Zora"))]
    danger = inherited_bias({"few": two, "more": more}, [], {})
    rows = {(row[0], row[2]): row[3] for row in danger.rows}
    assert rows["few", "refusals"] == rows["few", "score"] == "too few questions"
    assert (rows["more", "refusals"].low, rows["more", "refusals"].high) == (-1.0, 1.0)
    assert all(one.low is None for one in danger.hypotheses if one.model == "few")


def answers_of(seed: int, sharpness: float, questions: int = 150) -> list[Any]:
    """Eight answers a question; the likelier of two is right as often as its share, which `sharpness` overstates."""
    chance, found = random.Random(seed), []
    for i in range(questions):
        share = chance.uniform(0.5, 1.0)
        truth = "a" if chance.random() < share else "b"
        said = ["a" if chance.random() < share ** (1 / sharpness) else "b" for _ in range(8)]
        found += self_consistency(f"q{i}", said, [one == truth for one in said])
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_student_that_became_surer_than_it_is_right_is_flagged(seed):
    found = {"teacher": answers_of(seed, 1.0), "calm": answers_of(seed, 1.0), "sure": answers_of(seed, 4.0)}
    danger = calibration(found, {"calm": "teacher", "sure": "teacher"}, {})
    assert subjects(danger) == ["sure"]


def test_answers_are_read_as_the_evaluation_left_them(tmp_path):
    (tmp_path / "answers.jsonl").write_text(
        '{"suite": "s", "model": "m", "id": "q", "category": "c", "turns": ['
        '{"user": "u", "assistant": "a", "score": 7, "judgment": ""}, '
        '{"user": "v", "assistant": "", "score": null, "judgment": "", "reason": "no answer: length"}]}\n'
        '{"suite": "loss", "model": "m", "id": "q", "category": "", "turns": ['
        '{"user": "", "assistant": "", "score": 1.5, "judgment": ""}]}\n'
    )
    assert list(read_said(tmp_path / "answers.jsonl")) == [
        Said("s", "m", "q", 1, "c", "u", "a", 7),
        Said("s", "m", "q", 2, "c", "v", None, None),
    ]
