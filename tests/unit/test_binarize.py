"""Binarization on planted scores: what is preferred to what, and what never becomes a pair."""

import random
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, given, make, user

from potstill.errors import DataError
from potstill.records import Answers, Candidate, Prompt, Rating
from potstill.stages.binarize import Binarize, score_of

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
    """Trap: "tied scores binarized into a pair with itself"; "a tie turned into a preference"."""
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
    """Trap: "Chosen and rejected equal"."""
    same = answers("same", candidate("a", (5,) * 4, "t"), candidate("b", (1,) * 4, "t"))
    partly = answers("partly", candidate("a", (5,) * 4, "t"), candidate("b", (1,) * 4, "t"), candidate("c", (2,) * 4))
    made = run(tmp_path, same, partly, rejected="worst")
    assert [(row.id, row.reason) for row in made.dropped] == [("same", "identical")]
    assert made.rows[0].rejected[0].content == "text of c"


def test_na_is_no_number_and_a_failed_parse_no_zero(tmp_path: Path) -> None:
    """Trap: 'Ratings "N/A" averaged as numbers'; "A failed parse stored as 0, as -1 in the mean"."""
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


# Policies.


def rated(model: str, text: str = "", judge: str = "", **scores: float | None) -> Candidate:
    ratings = tuple(Rating(aspect=aspect, score=score, judge=judge) for aspect, score in scores.items())
    return Candidate(model=model, text=text or f"text of {model}", ratings=ratings)


def chosen_and_rejected(made: Made) -> list[tuple[str, str]]:
    return [(pair.chosen[0].content[-1], pair.rejected[0].content[-1]) for pair in made.rows]


def test_what_the_best_is_best_in(tmp_path: Path) -> None:
    row = answers(
        "r",
        rated("a", honesty=5, helpfulness=1, overall=2, win_share=0.5),
        rated("b", honesty=2, helpfulness=5, overall=4, win_share=0.0),
        rated("c", honesty=1, helpfulness=1, overall=9, win_share=1.0),
    )

    def best(**fields: Any) -> str:
        return chosen_and_rejected(run(tmp_path, row, rejected="worst", **fields))[0][0]

    assert best() == "b", "an overall score and a share of wins are no aspects"
    assert best(chosen="best_overall") == "c"
    assert best(chosen="best_aspect", aspect="honesty") == "a"
    assert best(chosen="win_share") == "c"
    assert best(weights={"helpfulness": 0.1}) == "a"
    assert best(weights={"helpfulness": 0}) == "a"


def test_weights_are_exact(tmp_path: Path) -> None:
    row = answers("r", rated("a", honesty=5, helpfulness=2), rated("b", honesty=1, helpfulness=1))
    (pair,) = run(tmp_path, row, weights={"honesty": 3}).rows
    assert pair.chosen_score == 17 / 4
    with pytest.raises(DataError, match="no pair can be made"):
        run(tmp_path, row, weights={"honesty": 0, "helpfulness": 0})


def test_which_judges_count(tmp_path: Path) -> None:
    def heard(model: str, all_of_them: float, one: float, other: float) -> Candidate:
        ratings = [("", all_of_them), ("one", one), ("other", other)]
        told = tuple(Rating(aspect="honesty", score=score, judge=judge) for judge, score in ratings)
        return Candidate(model=model, text=f"text of {model}", ratings=told)

    row = answers("r", heard("a", 4, 5, 3), heard("b", 2, 1, 5))
    assert run(tmp_path, row).rows[0].chosen_score == 4, "by default what was made of all"
    assert run(tmp_path, row, judges=["one"]).rows[0].chosen_score == 5
    assert run(tmp_path, row, judges=["other"]).rows[0].chosen_score == 5
    assert chosen_and_rejected(run(tmp_path, row, judges=["other"])) == [("b", "a")]
    assert run(tmp_path, row, judges=["one", "other"]).rows[0].chosen_score == 4


def test_people_who_rated_count_alike(tmp_path: Path) -> None:
    def seen(model: str, *scores: float) -> Candidate:
        told = tuple(Rating(aspect="human", score=score, judge=f"person {i}") for i, score in enumerate(scores))
        return Candidate(model=model, text=f"text of {model}", ratings=told)

    row = answers("r", seen("a", 1, 1, 0), seen("b", 0, 0, 1))
    tied = answers("tied", seen("a", 1, 0.5, 0), seen("b", 0, 0.5, 1))
    made = run(tmp_path, row, tied)
    assert chosen_and_rejected(made) == [("a", "b")]
    assert [(dropped.id, dropped.reason) for dropped in made.dropped] == [("tied", "tie")]


def ladder() -> Answers:
    scores = {"a": 5, "b": 4, "c": 3, "d": 1}
    return answers("r", *(candidate(model, (score,) * 4) for model, score in scores.items()))


def test_who_is_rejected(tmp_path: Path) -> None:
    assert chosen_and_rejected(run(tmp_path, ladder(), rejected="second")) == [("a", "b")]
    assert chosen_and_rejected(run(tmp_path, ladder(), rejected="worst")) == [("a", "d")]
    twice = answers("r", candidate("a", (5,), "1"), candidate("a", (1,), "2"), candidate("b", (3,), "3"))
    assert chosen_and_rejected(run(tmp_path, twice, rejected="other_model")) == [("1", "3")]
    alone = answers("alone", candidate("a", (5,), "1"), candidate("a", (1,), "2"))
    made = run(tmp_path, twice, alone, rejected="other_model")
    assert [(row.id, row.reason) for row in made.dropped] == [("alone", "one_model")]


def test_several_pairs_of_a_prompt(tmp_path: Path) -> None:
    two = run(tmp_path, ladder(), rejected="worst", pairs_per_prompt=2)
    assert chosen_and_rejected(two) == [("a", "d"), ("a", "c")]
    assert [pair.id for pair in two.rows] == ["r/1", "r/2"]
    assert chosen_and_rejected(run(tmp_path, ladder(), rejected="second", pairs_per_prompt=9)) == [
        ("a", "b"), ("a", "c"), ("a", "d"),
    ]  # fmt: skip
    drawn = run(tmp_path, ladder(), pairs_per_prompt=3)
    assert sorted(chosen_and_rejected(drawn)) == [("a", "b"), ("a", "c"), ("a", "d")]
    every = run(tmp_path, ladder(), pairs_per_prompt="all")
    assert chosen_and_rejected(every) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]


def test_every_pair_leaves_out_ties_and_equal_texts(tmp_path: Path) -> None:
    row = answers(
        "r", candidate("a", (5,)), candidate("b", (5,)), candidate("c", (1,), "text of a"), candidate("d", (2,))
    )
    made = run(tmp_path, row, pairs_per_prompt="all")
    assert chosen_and_rejected(made) == [("a", "d"), ("b", "a"), ("b", "d"), ("d", "a")]
    assert all(pair.chosen != pair.rejected and pair.chosen_score > pair.rejected_score for pair in made.rows)


def test_small_margins_among_many_pairs_are_told_one_by_one(tmp_path: Path) -> None:
    made = run(tmp_path, ladder(), pairs_per_prompt="all", min_margin=2)
    assert chosen_and_rejected(made) == [("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert [(row.id, row.reason, row.detail) for row in made.dropped] == [
        ("r/1", "small_margin", "1.000"),
        ("r/4", "small_margin", "1.000"),
    ]
    best = run(tmp_path, ladder(), pairs_per_prompt="all", largest_margins=1)
    assert chosen_and_rejected(best) == [("a", "d")]
    assert best.facts["dropped"] == {"smaller_margin": 5}


def test_not_applicable_may_count_as_missing_or_not_at_all(tmp_path: Path) -> None:
    """Trap: 'Ratings "N/A" averaged as numbers': it only decides whether an answer is used."""

    def poem(model: str, score: float) -> Candidate:
        told = (
            Rating(aspect="honesty", score=None, rationale="N/A: a poem"),
            Rating(aspect="helpfulness", score=score),
        )
        return Candidate(model=model, text=model, ratings=told)

    row = answers("r", poem("a", 4), poem("b", 2))
    with pytest.raises(DataError, match="1 too_few_rated"):
        run(tmp_path, row, min_rated=0.75)
    (pair,) = run(tmp_path, row, min_rated=0.75, not_applicable="left_out").rows
    assert (pair.chosen_score, pair.rejected_score) == (4, 2)
    unread = row.model_copy(update={"candidates": tuple(candidate(m, (None, s), m) for m, s in (("a", 4), ("b", 2)))})
    with pytest.raises(DataError, match="1 too_few_rated"):
        run(tmp_path, unread, min_rated=0.75, not_applicable="left_out")


def test_lengths_that_differ_too_much_are_dropped_and_the_bias_is_told(tmp_path: Path) -> None:
    rows = [
        answers("longer", candidate("a", (5,), "x" * 80), candidate("b", (1,), "y" * 20)),
        answers("shorter", candidate("a", (5,), "x" * 20), candidate("b", (1,), "y" * 40)),
        answers("alike", candidate("a", (5,), "x" * 20), candidate("b", (1,), "y" * 20)),
    ]
    made = run(tmp_path, *rows)
    assert made.facts["length"] == {
        "chosen_longer": 0.5,
        "mean_difference_characters": pytest.approx(40 / 3, abs=1e-6),
        "mean_ratio": pytest.approx((4 * 0.5 * 1) ** (1 / 3), abs=1e-6),
    }
    limited = run(tmp_path, *rows, max_length_ratio=2)
    assert [(row.id, row.reason, row.detail) for row in limited.dropped] == [
        ("longer", "length_ratio", "80 and 20 characters")
    ]
    assert limited.facts["length"]["chosen_longer"] == 0.25


def test_policies_that_do_not_fit_each_other_are_refused() -> None:
    base = {"kind": "binarize", "data": "d"}
    for fields, words in (
        ({"chosen": "best_aspect"}, "belong together"),
        ({"aspect": "honesty"}, "belong together"),
        ({"chosen": "best_overall", "weights": {"honesty": 1}}, "'weights' are those of"),
        ({"pairs_per_prompt": "all", "rejected": "worst"}, "nothing to choose"),
        ({"pairs_per_prompt": 0}, "1 or more"),
        ({"weights": {"honesty": -1}}, "greater than or equal to 0"),
    ):
        with pytest.raises(ValueError, match=words):
            Binarize.model_validate({**base, **fields})


def test_an_answer_that_was_cut_and_kept_may_be_chosen(tmp_path: Path) -> None:
    row = answers("r", candidate("a", (5,), finish="length"), candidate("b", (1,)))
    assert chosen_and_rejected(run(tmp_path, row)) == [("a", "b")]


def meant(model: str, helpfulness: tuple[int, ...], honesty: tuple[int, ...]) -> Candidate:
    """As a judge stage writes a panel: the mean of several judges, as a float."""
    return candidate(model, (sum(helpfulness) / len(helpfulness), sum(honesty) / len(honesty)))


def test_means_of_judges_that_come_to_the_same_are_a_tie(tmp_path: Path) -> None:
    """Trap: "a tie turned into a preference": 13/3 and 11/3 as floats do not come to 8 when they are added exactly."""
    row = answers("x", meant("a", (5, 4, 4), (4, 4, 3)), meant("b", (4, 4, 4), (4, 4, 4)))
    made = run(tmp_path, four(), row)
    assert [(row.id, row.reason) for row in made.dropped] == [("x", "tie")]


def test_no_panel_makes_a_preference_of_a_tie() -> None:
    draw, config, ties = random.Random(4), Binarize(kind="binarize", data="d"), 0
    for _ in range(3000):
        size = draw.choice((3, 6, 7))
        one, other = ([tuple(draw.choices((3, 4, 5), k=size)) for _ in range(2)] for _ in range(2))
        scores = [score_of(config, meant("m", *rated)) for rated in (one, other)]
        equal = sum(map(sum, one)) == sum(map(sum, other))
        ties += equal
        assert (scores[0] == scores[1]) is equal
    assert ties > 200


def test_a_margin_at_the_limit_is_kept(tmp_path: Path) -> None:
    row = answers("x", candidate("a", (0.3,)), candidate("b", (0.2,)))
    assert run(tmp_path, row, min_margin=0.1).rows, "0.3 - 0.2 is 0.1"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"weights": {"truthfullness": 5}}, "no rating has the aspect 'truthfullness'; there is helpfulness, honesty,"),
        ({"chosen": "best_aspect", "aspect": "nosuch"}, "no rating has the aspect 'nosuch'; there is helpfulness,"),
        ({"judges": ["nosuch"]}, "no rating has the judge 'nosuch'; there is none with a name"),
    ],
)
def test_a_name_that_no_rating_has_is_an_error(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        run(tmp_path, four(), **fields)


def test_every_two_answers_that_make_no_pair_are_told(tmp_path: Path) -> None:
    row = answers("r", candidate("a", (5,)), candidate("b", (5,)), candidate("c", (1,), "text of a"))
    made = run(tmp_path, row, pairs_per_prompt="all")
    assert chosen_and_rejected(made) == [("b", "a")]
    assert [(row.id, row.reason) for row in made.dropped] == [("r/2", "tie"), ("r/3", "identical")]
    assert made.facts["dropped"] == {"identical": 1, "tie": 1}
