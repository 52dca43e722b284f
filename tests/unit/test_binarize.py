"""Binarization on planted scores: what is preferred to what, and what never becomes a pair."""

from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, given, make, user

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Prompt, Rating

ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
Scores = tuple[float | None, ...]


def candidate(model: str, scores: Scores, text: str = "", **fields: Any) -> Candidate:
    ratings = tuple(Rating(aspect=a, score=s) for a, s in zip(ASPECTS, scores, strict=False))
    return Candidate(model=model, text=text or f"text of {model}", ratings=ratings, **fields)


def answers(name: str, *candidates: Candidate) -> Answers:
    return Answers(id=name, prompt=Prompt(id=name, messages=user("q"), category="c"), candidates=candidates)


def run(folder: Path, *rows: Answers, seed: int = 1, **fields: Any) -> Made:
    folder.mkdir(exist_ok=True)
    data = given(folder, "ratings", rows, f"rated{len(list(folder.iterdir()))}")
    return make(folder, {"kind": "binarize", "data": "rated", **fields}, {"data": data}, seed=seed)


def four(name: str = "r") -> Answers:
    scores = {"low": (1, 1, 1, 1), "best": (5, 5, 5, 4), "middle": (3, 3, 3, 3), "good": (4, 4, 4, 4)}
    return answers(name, *(candidate(model, given) for model, given in scores.items()))


def test_best_against_worst(tmp_path: Path) -> None:
    made = run(tmp_path, four(), rejected="worst")
    (pair,) = made.rows
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("text of best", "text of low")
    assert (pair.chosen_score, pair.rejected_score, pair.category) == (4.75, 1.0, "c")
    assert made.facts["margins"] == {"3.5": 1}
    assert made.facts["mean_margin"] == 3.75


def test_best_against_a_random_other_by_seed(tmp_path: Path) -> None:
    rows = [four(f"r{i}") for i in range(600)]
    made = run(tmp_path, *rows)
    assert made.facts["chosen_models"] == {"best": 600}
    counts = made.facts["rejected_models"]
    assert set(counts) == {"low", "middle", "good"}
    assert all(150 < count < 250 for count in counts.values())
    assert run(tmp_path, *rows).files == made.files
    assert run(tmp_path, *rows, seed=2).files != made.files


def test_what_a_row_becomes_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    rows = [four(f"r{i}") for i in range(40)]
    all_of_them = {pair.id: pair for pair in run(tmp_path, *rows).rows}
    assert run(tmp_path, *rows[::3]).rows == [all_of_them[row.id] for row in rows[::3]]


def test_a_tie_is_never_a_preference(tmp_path: Path) -> None:
    """TRAPS: tied scores binarized into a pair with itself; a tie turned into a preference."""
    tied = answers("tied", *(candidate(m, (3, 3, 3, 3)) for m in "abcd"))
    top = answers("top", candidate("a", (5,) * 4), candidate("b", (5,) * 4), candidate("c", (2,) * 4))
    made = run(tmp_path, tied, *(top.model_copy(update={"id": f"top{i}"}) for i in range(60)))
    assert [(row.id, row.reason) for row in made.dropped] == [("tied", "tie")]
    assert made.facts["shared_best"] == 60
    assert set(made.facts["chosen_models"]) == {"a", "b"}, "either of the best, by seed"
    assert made.facts["rejected_models"] == {"c": 60}, "never the other best"


def test_means_that_are_equal_but_not_as_floats_are_a_tie(tmp_path: Path) -> None:
    one, other = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    assert sum(one) != sum(other)
    made = run(tmp_path, four(), answers("x", candidate("a", one), candidate("b", other)))
    assert [row.reason for row in made.dropped] == ["tie"]


def test_texts_that_are_the_same_are_never_a_pair(tmp_path: Path) -> None:
    """TRAPS: chosen and rejected equal."""
    same = answers("same", candidate("a", (5,) * 4, "t"), candidate("b", (1,) * 4, "t"))
    partly = answers("partly", candidate("a", (5,) * 4, "t"), candidate("b", (1,) * 4, "t"), candidate("c", (2,) * 4))
    made = run(tmp_path, same, partly, rejected="worst")
    assert [(row.id, row.reason) for row in made.dropped] == [("same", "identical")]
    assert made.rows[0].rejected[0].content == "text of c"


def test_na_is_no_number_and_a_failed_parse_no_zero(tmp_path: Path) -> None:
    """TRAPS: ratings "N/A" averaged as numbers; a failed parse stored as 0, or as -1 in the mean."""
    row = answers("r", candidate("a", (4, None, 4, 4)), candidate("b", (5, 1, None, 5)), candidate("c", (3, 3, 3, 3)))
    (pair,) = run(tmp_path, row, rejected="worst").rows
    assert (pair.chosen_score, pair.rejected_score) == (4.0, 3.0)


def test_answers_with_too_few_scores_or_no_usable_text_are_not_used(tmp_path: Path) -> None:
    row = answers(
        "r",
        candidate("half", (4, 4, None, None)),
        candidate("less", (5, None, None, None)),
        candidate("cut", (5, 5, 5, 5), finish="length", reason="cut"),
        candidate("unrated", ()),
        candidate("full", (2, 2, 2, 2)),
    )
    (pair,) = run(tmp_path, row).rows
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("text of half", "text of full")
    with pytest.raises(DataError, match=r"no pair can be made \(1 too_few_rated\)"):
        run(tmp_path, row, min_rated=0.75)


def test_small_margins_are_dropped_and_counted(tmp_path: Path) -> None:
    near = answers("near", candidate("a", (4, 4, 4, 4)), candidate("b", (4, 4, 4, 3)))
    made = run(tmp_path, near, four(), rejected="worst", min_margin=0.5)
    assert [(row.id, row.reason, row.detail) for row in made.dropped] == [("near", "small_margin", "0.250")]
    assert run(tmp_path, near, min_margin=0.25).facts["rows"] == 1


def test_the_largest_margins_in_the_rows_own_order(tmp_path: Path) -> None:
    rows = [answers(f"r{i}", candidate("a", (5,)), candidate("b", (low,))) for i, low in enumerate((4, 1, 3, 2, 1))]
    made = run(tmp_path, *rows, largest_margins=3)
    assert [pair.id for pair in made.rows] == ["r1", "r3", "r4"]
    assert made.facts["dropped"] == {"smaller_margin": 2}
    assert made.facts["margins"] == {"3.0": 1, "4.0": 2}
    assert sorted(row.id for row in made.dropped) == ["r0", "r2"]
