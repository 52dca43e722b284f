"""AlpacaEval's files: read, written again without loss, and counted as its leaderboards count them."""

import csv
import json
import math
from pathlib import Path

import pytest

from potstill.errors import DataError
from potstill.evaluation import alpaca_eval
from potstill.evaluation.alpaca_eval import Annotation, Entry
from potstill.reading.files import read_lines

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval"
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/alpaca_eval is not here")


def annotation(preference, instruction: str = "Why?", **changed) -> dict:
    row = {
        "instruction": instruction,
        "output_1": "Because.",
        "generator_1": "base",
        "dataset": "koala",
        "output_2": "For a reason.",
        "generator_2": "m",
        "annotator": "judge",
        "preference": preference,
        "price_per_example": 0.1,
        "raw_completion": None,
    }
    return {**row, **changed}


def write(path: Path, *rows: dict) -> Path:
    path.write_text(json.dumps(rows))
    return path


def read(path: Path) -> list[Annotation]:
    return alpaca_eval.read_annotations(read_lines(path), str(path))


def entry_of(tmp_path: Path, *preferences) -> Entry:
    rows = [annotation(preference, str(i)) for i, preference in enumerate(preferences)]
    return alpaca_eval.entry(read(write(tmp_path / "a.json", *rows)))


# The published numbers.


@real
@pytest.mark.parametrize(
    ("model", "annotator"),
    [
        ("vicuna-13b", "alpaca_eval_gpt4"),
        ("llama-2-70b-chat-hf", "alpaca_eval_gpt4"),
        ("zephyr-7b-alpha", "alpaca_eval_gpt4"),
        ("vicuna-13b", "weighted_alpaca_eval_gpt4_turbo"),
    ],
)
def test_every_column_is_the_published_leaderboards(model, annotator):
    rows = read(DATA / model / annotator / "annotations.json")
    with (DATA / "leaderboards" / f"{annotator}_leaderboard.csv").open(newline="") as file:
        published = next(line for line in csv.DictReader(file) if line[""] == model)
    found = alpaca_eval.entry(rows, [len(row.output_2) for row in rows if row.output_2 is not None]).to_json()
    assert {name: pytest.approx(float(published[name]), abs=1e-9) for name in found} == found


@real
def test_weighted_preferences_are_what_the_judges_probabilities_say():
    """803 of 805 rows hold them, 398 as they stand and 405 with the answers shown in the other order."""
    rows = read(DATA / "vicuna-13b" / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json")
    assert sum(row.rest["raw_completion"] is not None for row in rows) == 803
    assert alpaca_eval.unlike(rows) == []


# Edges.


def test_wins_losses_and_draws_by_hand(tmp_path):
    """Shares 1, 1, 0, .5, .5, .25: mean 3.25/6; variance by n - 1; the discrete rate takes .25 for 0."""
    found = entry_of(tmp_path, 2, 2.0, 1, 1.5, 0, 1.25)
    shares = [1, 1, 0, 0.5, 0.5, 0.25]
    mean = sum(shares) / 6
    spread = math.sqrt(sum((share - mean) ** 2 for share in shares) / 5 / 6)
    assert found.win_rate == pytest.approx(100 * mean, abs=1e-12)
    assert found.standard_error == pytest.approx(100 * spread, abs=1e-12)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (2, 2, 2, 6)
    assert found.discrete_win_rate == pytest.approx(100 * 3 / 6)


def test_a_draw_stored_as_zero_is_no_loss(tmp_path):
    assert entry_of(tmp_path, 0, 0.0, "0").win_rate == 50
    assert entry_of(tmp_path, 0, 0.0, "0").n_draws == 3


def test_numbers_as_text_count_as_numbers(tmp_path):
    assert entry_of(tmp_path, "2", "1.0", "1.5") == entry_of(tmp_path, 2, 1, 1.5)


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, 3, -1, 0.5, 2.1, ""])
def test_what_is_no_preference_is_dropped_and_counted(nothing, tmp_path):
    """As AlpacaEval drops whatever does not lie from 1 to 2. Never a loss."""
    found = entry_of(tmp_path, 2, nothing, 1)
    assert (found.win_rate, found.n_total) == (50, 2)
    rows = read(write(tmp_path / "a.json", annotation(nothing)))
    assert [row.value for row in alpaca_eval.observations(rows)] == [None]


def test_one_row_has_no_standard_error_and_none_has_no_rate(tmp_path):
    assert entry_of(tmp_path, 2).standard_error is None
    empty = entry_of(tmp_path, None)
    assert (empty.win_rate, empty.discrete_win_rate, empty.n_total) == (None, None, 0)


def test_the_average_length_is_cut_to_a_whole_number():
    assert alpaca_eval.entry([], [1, 2, 2]).avg_length == 1
    assert alpaca_eval.entry([]).avg_length is None


def test_models_baselines_and_annotators_are_told_apart(tmp_path):
    rows = [
        annotation(2),
        annotation(1, generator_2="n"),
        annotation(1, annotator="other"),
        annotation(1, generator_1="rival"),
        annotation(1, "And?"),
    ]
    found = alpaca_eval.by_comparison(read(write(tmp_path / "a.json", *rows)))
    assert {key: {name: len(rows) for name, rows in models.items()} for key, models in found.items()} == {
        ("judge", "base"): {"m": 2, "n": 1},
        ("other", "base"): {"m": 1},
        ("judge", "rival"): {"m": 1},
    }


def test_an_instruction_that_stands_twice_is_one_question_with_two_parts(tmp_path):
    rows = read(write(tmp_path / "a.json", annotation(2), annotation(1, "And?"), annotation(1)))
    found = alpaca_eval.observations(rows)
    assert [row.part for row in found] == ["", "", "run 2"]
    assert found[0].question == found[2].question != found[1].question
    assert found[0].category == "koala"


def test_columns_that_may_be_missing(tmp_path):
    short = {"instruction": "a", "generator_1": "b", "generator_2": "m", "preference": 2}
    (row,) = read(write(tmp_path / "a.json", short))
    assert (row.output_2, row.dataset, row.annotator, row.rest) == (None, "", "", {})
    assert alpaca_eval.unlike([row]) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preference": "better"}, "'preference' is 'better'; expected a number from 1 to 2, or null"),
        ({"preference": [2]}, "'preference' is a list"),
        ({"preference": True}, "'preference' is true or false"),
        ({"instruction": None}, "'instruction' is missing; expected text"),
        ({"generator_2": 7}, "'generator_2' is a number; expected text"),
        ({"output_2": 7}, "'output_2' is a number; expected text"),
    ],
)
def test_a_row_that_is_no_annotation_is_refused_with_its_line(changed, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[\n" + json.dumps(annotation(2)) + ",\n" + json.dumps(annotation(2) | changed) + "]")
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path}:3: {message}" in str(caught.value)


# The judge's probabilities.


def completion(m: float, other: float) -> dict:
    tokens = [{"token": "m", "logprob": math.log(m)}, {"token": "M", "logprob": math.log(other)}]
    return {"logprobs": {"content": [{"top_logprobs": tokens}]}}


@pytest.mark.parametrize(
    ("preference", "raw", "said"),
    [
        (1.25, completion(0.6, 0.2), None),
        (1.75, completion(0.6, 0.2), None),
        (1.5, completion(0.6, 0.2), 1.25),
        (2.0, completion(0.6, 0.2), 1.75),
        (2.0, None, None),
        (2.0, "M", None),
        (2.0, {"logprobs": None}, None),
        (2.0, {"logprobs": {"content": []}}, None),
        (2.0, {"logprobs": {"content": [{"top_logprobs": [{"token": "x", "logprob": -1}]}]}}, None),
        (None, completion(0.6, 0.2), None),
    ],
)
def test_a_preference_that_the_probabilities_do_not_say_is_found(preference, raw, said, tmp_path):
    rows = read(write(tmp_path / "a.json", annotation(preference, raw_completion=raw)))
    found = alpaca_eval.unlike(rows)
    assert [value for _, value in found] == ([] if said is None else [pytest.approx(said)])


# Writing.


def test_annotations_are_written_again_as_they_were(tmp_path):
    rows = [annotation(2), annotation(1.25, raw_completion={"a": [1]}), annotation(None, output_2="é\n</s>")]
    path = write(tmp_path / "a.json", *rows)
    alpaca_eval.write_rows(tmp_path / "again.json", read(path))
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == rows
    assert [list(row) for row in again] == [list(row) for row in rows]


@real
@pytest.mark.parametrize("model", ["vicuna-13b", "zephyr-7b-alpha"])
def test_a_published_file_is_written_again_but_for_how_draws_are_stored(model, tmp_path):
    path = DATA / model / "alpaca_eval_gpt4" / "annotations.json"
    alpaca_eval.write_rows(tmp_path / "again.json", read(path))
    before = [
        {**row, "preference": row["preference"] or (row["preference"] and 1.5)} for row in json.loads(path.read_text())
    ]
    before = [{**row, "preference": 1.5 if row["preference"] == 0 else row["preference"]} for row in before]
    assert json.loads((tmp_path / "again.json").read_text()) == before
    assert alpaca_eval.entry(read(tmp_path / "again.json")) == alpaca_eval.entry(read(path))


@real
def test_outputs_are_written_again_as_they_were(tmp_path):
    path = DATA / "zephyr-7b-alpha" / "model_outputs.json"
    alpaca_eval.write_rows(tmp_path / "again.json", alpaca_eval.read_outputs(read_lines(path), str(path)))
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


# Leaderboards.


def test_a_leaderboards_empty_cells_are_none(tmp_path):
    path = tmp_path / "judge_leaderboard.csv"
    path.write_text(",win_rate,standard_error,n_total,avg_length,lc_standard_error\nm,70.5,1.6,805.0,1037,\n")
    (line,) = alpaca_eval.read_leaderboard(read_lines(path), str(path)).values()
    assert (line.model, line.win_rate, line.n_total, line.avg_length) == ("m", 70.5, 805, 1037)
    assert line.lc_standard_error is None
    assert line.length_controlled_winrate is None


def test_a_leaderboards_row_without_a_rate_is_refused(tmp_path):
    path = tmp_path / "judge_leaderboard.csv"
    path.write_text(",win_rate,standard_error,n_total\nm,1,1.6,805\nn,,1.6,805\n")
    with pytest.raises(DataError, match=r"leaderboard\.csv:3: 'win_rate' is missing; expected a number"):
        alpaca_eval.read_leaderboard(read_lines(path), str(path))
