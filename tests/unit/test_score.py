"""`potstill score`: what it recognises, the figures it gives, what it warns of, and what it refuses in one line."""

import csv
import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import potstill
from potstill.artifact import seal
from potstill.cli import main
from potstill.errors import DataError, StorageError
from potstill.evaluation.scores import Measure, SuiteResult, read_results, write_observations
from potstill.evaluation.statistics import Observation, mean_estimate
from potstill.runs.workspace import Asked, Description, Workspace
from potstill.scoring.compare import read_side
from potstill.scoring.results import read_suites

DATA = Path(__file__).parents[3] / "shared" / "data"
BOARDS = DATA / "alpaca_eval" / "leaderboards"
real = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the published files, is not here")

Score = Callable[..., dict[str, Any]]


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Score:
    """The JSON of `potstill score --json`."""

    def run(*arguments: object) -> dict[str, Any]:
        code = main(["score", "--json", *map(str, arguments)])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return json.loads(shown.out)

    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `potstill score` prints for people."""

    def run(*arguments: object) -> str:
        assert main(["score", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


def judged(question: int, score: float, turn: int = 1, model: str = "m", **changed: Any) -> dict[str, Any]:
    row = {"question_id": question, "model": model, "judge": ["gpt-4", "single-v1"], "judgment": "", "turn": turn}
    return {**row, "score": score, **changed}


def annotated(question: str, preference: float | None, model: str = "m", **changed: Any) -> dict[str, Any]:
    row = {"instruction": question, "output_1": "abc", "generator_1": "base", "dataset": "koala"}
    return {**row, "output_2": "abcd", "generator_2": model, "annotator": "judge", "preference": preference, **changed}


def compared(question: int, first: str, second: str, **changed: Any) -> dict[str, Any]:
    row = {"question_id": question, "model_1": "m", "model_2": "base", "g1_winner": first, "g2_winner": second}
    return {**row, "judge": ["gpt-4", "pair-v2"], "turn": 1, **changed}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return path


def evaluation(folder: Path) -> Path:
    """A sealed evaluation's files."""
    folder.mkdir(parents=True)
    rows = {
        name: [Observation(str(q), "1", float(q % 7 + 1), category="math") for q in range(9)] for name in ("a", "b")
    }
    results = {"chat": SuiteResult(Measure("mt_bench", (1.0, 10.0), unit="points"), rows)}
    scores = {"models": ["a", "b"], "suites": {name: result.to_json() for name, result in results.items()}}
    (folder / "scores.json").write_text(json.dumps(scores))
    write_observations(folder, results)
    return folder


# Published files.


@real
def test_mt_bench_as_published(score):
    (one,) = score(DATA / "mt_bench" / "model_judgment" / "alvarobartt_gpt-4_single.jsonl")["results"]
    rows = [json.loads(x) for x in Path(one["file"]).read_text().splitlines()]
    assert (one["suite"], one["judge"], one["baseline"]) == ("mt_bench", "gpt-4", None)
    assert one["categories_from"].endswith("mt_bench/question.jsonl")
    assert len(one["categories"]) == 8
    for name, found in one["models"].items():
        scores = [row["score"] for row in rows if row["model"] == name and row["score"] != -1]
        assert found["mean"] == pytest.approx(fmean(scores), abs=1e-12)
        for turn in ("1", "2"):
            scores = [r["score"] for r in rows if r["model"] == name and r["turn"] == int(turn) and r["score"] != -1]
            assert found["parts"][turn]["mean"] == pytest.approx(fmean(scores), abs=1e-12)
        assert 0.5 < (found["high"] - found["low"]) / 2 < 0.75
        assert found["questions"] == 80
    twice = one["models"]["mistral-orpo"]
    assert (twice["asked"], twice["n"], twice["failed"], twice["repeated"]) == (320, 319, 1, 160)
    assert twice["mean"] == pytest.approx(5.8589, abs=1e-4)
    assert twice["first_run"]["mean"] == pytest.approx(5.3868, abs=1e-4)
    assert "160 of 320 rows are scored a second time" in twice["warnings"][0]
    assert [name for name, found in one["models"].items() if found["repeated"]] == ["mistral-orpo"]


@real
def test_a_weak_judge_gives_a_coverage_and_no_mean(score, said):
    path = DATA / "mt_bench" / "model_judgment" / "instructlab_weak_judge_single.jsonl"
    found = score(path)["results"][0]["models"]["granite-7b-lab"]
    assert (found["coverage"], found["n"], found["failed"]) == (0.25, 40, 120)
    assert [(row["question"], row["turn"], row["said"]) for row in found["unlike"]] == [
        ("127", 1, None),
        ("127", 2, None),
    ]
    assert (found["mean"], found["low"], found["high"], found["standard_error"]) == (None, None, None, None)
    assert found["of_those_scored"]["mean"] == pytest.approx(7.4)
    shown = said(path)
    (line,) = [line for line in shown.splitlines() if line.startswith("granite-7b-lab")]
    assert "only 25.0%" in line
    assert "7.4" not in line
    assert "coverage 25%: 40 of 160 could be scored; too few for a mean (7.4 [6.361, 8.439] of those alone)" in shown


@real
@pytest.mark.parametrize("model", ["vicuna-13b", "zephyr-7b-alpha", "llama-2-70b-chat-hf"])
def test_alpaca_eval_as_published(model, score):
    board = BOARDS / "alpaca_eval_gpt4_leaderboard.csv"
    (one,) = score(DATA / "alpaca_eval" / model / "alpaca_eval_gpt4", board)["results"]
    with board.open(newline="") as file:
        published = next(line for line in csv.DictReader(file) if line[""] == model)
    found = one["models"][model]
    assert found["mean"] * 100 == pytest.approx(float(published["win_rate"]), abs=1e-9)
    assert found["standard_error"] * 100 == pytest.approx(float(published["standard_error"]), abs=1e-9)
    for name, value in found["alpaca_eval"].items():
        assert value == pytest.approx(float(published[name]), abs=1e-9)
    assert found["published"]["win_rate"] == pytest.approx(found["alpaca_eval"]["win_rate"], abs=1e-9)
    assert list(one["categories"]) == ["helpful_base", "koala", "oasst", "selfinstruct", "vicuna"]
    assert found["failed"] == 805 - int(published["n_total"])


@real
def test_alpaca_eval_2_at_equal_length(score, said):
    tables = ["--weights", BOARDS / "lc_weights_length_controlled_v1.csv"]
    tables += ["--difficulty", BOARDS / "instruction_difficulty_recovered.csv"]
    folder = DATA / "alpaca_eval" / "vicuna-13b" / "weighted_alpaca_eval_gpt4_turbo"
    board = BOARDS / "weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
    found = score(folder, board, *tables)
    controlled = found["results"][0]["models"]["vicuna-13b"]["length_controlled"]
    assert controlled["win_rate"] == pytest.approx(9.222060023704104, abs=1e-6)
    assert controlled["from"] == "weights"
    assert controlled["fit_less_published"] == pytest.approx(-1.5077, abs=1e-3)
    lines = found["leaderboards"][0]["models"]
    given = {name: line["length_controlled"] for name, line in lines.items() if line["length_controlled"]}
    assert len(given) == 199
    away = [name for name, line in given.items() if abs(line["difference"]) > 1e-6]
    assert away == ["NullModel", "dbrx-instruct"]
    shown = said(folder, *tables)
    assert "at equal length 9.22% [" in shown
    assert "7.71% [" in shown


@real
def test_weights_against_another_baseline_are_left_out(score):
    tables = ["--weights", BOARDS / "lc_weights_length_controlled_v1.csv"]
    tables += ["--difficulty", BOARDS / "instruction_difficulty_recovered.csv"]
    first = BOARDS / "alpaca_eval_gpt4_leaderboard.csv"
    found = score(DATA / "alpaca_eval" / "vicuna-13b" / "alpaca_eval_gpt4", first, *tables)
    model = found["results"][0]["models"]["vicuna-13b"]
    assert model["length_controlled"]["by_weights"] is None
    assert "the published weights are not against text_davinci_003" in model["warnings"][0]
    board = found["leaderboards"][0]
    words = (
        "the weights of lc_weights_length_controlled_v1.csv are against gpt4_1106_preview, and this leaderboard is not"
    )
    assert board["weights_left_out"] == words
    assert all(line["length_controlled"] is None for line in board["models"].values())


@real
def test_a_leaderboard_is_set_against_another_model_by_its_weights(score):
    found = score(BOARDS, "--baseline", "vicuna-13b")
    board = next(one for one in found["leaderboards"] if one["annotator"] == "weighted_alpaca_eval_gpt4_turbo")
    lines = board["models"]
    assert board["weights_against"] == "vicuna-13b"
    assert lines["vicuna-13b"]["length_controlled"]["win_rate"] == 50
    assert lines["gpt4_1106_preview"]["length_controlled"]["win_rate"] == pytest.approx(100 - 9.222060023, abs=1e-6)
    assert lines["vicuna-13b"]["length_controlled"]["difference"] is None


# What is recognised.


def test_the_keys_stay(tmp_path, score):
    found = score(write(tmp_path / "a.json", annotated("1", 2), annotated("2", 1)))
    assert list(found) == ["results", "leaderboards", "weights", "difficulty", "skipped"]
    (one,) = found["results"]
    assert list(one) == [
        "file", "suite", "judge", "baseline", "categories_from", "protocol", "scale", "higher_is_better", "unit",
        "share", "models", "categories", "paired",
    ]  # fmt: skip
    assert list(one["models"]["m"]) == [
        "mean", "low", "high", "n", "coverage", "of_those_scored", "standard_error", "asked", "failed", "questions",
        "repeated", "first_run", "parts", "unlike", "average_length", "alpaca_eval", "length_controlled",
        "published", "warnings",
    ]  # fmt: skip
    judgments = score(write(tmp_path / "x.jsonl", judged(81, 8)))["results"][0]["models"]["m"]
    assert list(judgments) == list(one["models"]["m"])
    kept = score(evaluation(tmp_path / "scores"))["results"][0]["models"]["a"]
    assert list(kept) == list(one["models"]["m"])


def test_judgments_of_pairs_against_their_baseline(tmp_path, score):
    rows = [compared(81, "model_1", "model_1"), compared(82, "tie", "tie"), compared(83, "error", "tie")]
    (one,) = score(write(tmp_path / "x_pair.jsonl", *rows, compared(84, "model_2", "model_2")))["results"]
    assert (one["suite"], one["baseline"], list(one["models"])) == ("mt_bench_pairs", "base", ["m"])
    found = one["models"]["m"]
    assert found["mean"] == pytest.approx(0.5)
    assert (found["n"], found["failed"], found["coverage"]) == (3, 1, 0.75)


def test_turns_have_lines_of_their_own_with_intervals(tmp_path, said):
    rows = [compared(81, "model_1", "model_1"), compared(82, "model_1", "model_1")]
    rows += [compared(81, "tie", "tie", turn=2), compared(82, "model_2", "model_2", turn=2)]
    shown = said(write(tmp_path / "x_pair.jsonl", *rows)).splitlines()
    assert [line.split()[:4] for line in shown if line.startswith("turn")] == [
        ["turn", "1", "m", "100.00"],
        ["turn", "2", "m", "25.00"],
    ]
    assert all("[" in line for line in shown if line.startswith("turn"))


def test_of_many_models_the_parts_stand_in_the_json_alone(tmp_path, said, score):
    path = write(tmp_path / "x.jsonl", *(judged(q, q % 9 + 1, model=f"m{i}") for i in range(9) for q in (81, 92)))
    assert "turns and categories of 9 models: with --json" in said(path)
    assert "writing" not in said(path)
    assert set(score(path)["results"][0]["categories"]) == {"writing", "roleplay"}


def test_a_damaged_table_beside_the_annotations_is_left_alone(tmp_path, score):
    path = write(tmp_path / "annotations.json", *lengths())
    (tmp_path / "empty.csv").write_text("")
    assert score(path)["difficulty"] is None


def test_all_pairs_can_be_set_against_one_model(tmp_path, score):
    rows = [
        compared(81, "model_1", "model_1", model_1=one, model_2=two)
        for one, two in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    path = write(tmp_path / "x_pair.jsonl", *rows)
    (whole,) = score(path)["results"]
    assert whole["baseline"] is None
    assert {name: found["n"] for name, found in whole["models"].items()} == {"a": 2, "b": 2, "c": 2}
    (one,) = score(path, "--baseline", "c")["results"]
    assert {name: (found["n"], found["mean"]) for name, found in one["models"].items()} == {"a": (1, 1), "b": (1, 1)}


def test_several_models_judges_and_baselines_in_one_file(tmp_path, score):
    rows = [annotated(str(i), 1 + (i % 2), model) for i in range(6) for model in ("m", "n")]
    rows += [annotated("1", 2, annotator="other"), annotated("1", 2, generator_1="rival")]
    path = write(tmp_path / "annotations.json", *rows)
    found = [(one["judge"], one["baseline"], list(one["models"])) for one in score(path)["results"]]
    assert found == [("judge", "base", ["m", "n"]), ("other", "base", ["m"]), ("judge", "rival", ["m"])]
    assert [one["baseline"] for one in score(path, "--baseline", "rival")["results"]] == ["rival"]


def test_an_evaluation_by_its_folder_or_its_file(tmp_path, score):
    folder = evaluation(tmp_path / "scores")
    values = [float(q % 7 + 1) for q in range(9)]
    for path in (folder, folder / "scores.json", folder / "observations.jsonl", tmp_path):
        (one,) = score(path)["results"]
        assert one["models"]["a"]["mean"] == pytest.approx(fmean(values))
        assert one["paired"]["b-a"]["mean"] == 0


def test_a_folder_is_gone_through_and_what_is_no_result_is_told(tmp_path, score):
    write(tmp_path / "one" / "annotations.json", annotated("1", 2), annotated("2", 1))
    write(tmp_path / "two" / "gpt-4_single.jsonl", judged(81, 8), judged(82, 6))
    write(tmp_path / "one" / "model_outputs.json", {"instruction": "1", "output": "x" * 90, "generator": "m"})
    (tmp_path / "notes.json").write_text("{\n 'not': json\n}")
    write(tmp_path / "cut.json", {k: v for k, v in annotated("1", 2).items() if k != "preference"})
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    found = score(tmp_path)
    assert [one["suite"] for one in found["results"]] == ["alpaca_eval", "mt_bench"]
    assert found["results"][0]["models"]["m"]["average_length"] == 90
    why = [line.removeprefix(f"{tmp_path}/").partition(": ")[::2] for line in found["skipped"]]
    assert [name for name, _ in why] == ["cut.json", "notes.json:1", "other.csv"]
    assert why[0][1] == "it is like annotations of AlpacaEval, but lacks preference"
    assert why[1][1].startswith("not JSON")
    assert why[2][1] == "no result has columns a, b"


def test_a_file_named_twice_is_counted_once(tmp_path, score):
    path = write(tmp_path / "x.jsonl", judged(81, 8))
    assert len(score(path, path, tmp_path)["results"]) == 1


def test_compressed_files_are_read_as_they_are(tmp_path, score):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(judged(81, 8)) + "\n").encode()))
    assert score(path)["results"][0]["models"]["m"]["mean"] == 8


def test_categories_are_the_question_files_or_those_of_mt_benchs_own_numbers(tmp_path, score):
    path = write(tmp_path / "mt" / "model_judgment" / "x_single.jsonl", judged(81, 8), judged(92, 6))
    (one,) = score(path)["results"]
    assert list(one["categories"]) == ["writing", "roleplay"]
    assert one["categories_from"] == "the ids of MT-Bench's own questions"
    own = [{"question_id": number, "category": "poems", "turns": ["?"]} for number in (81, 92)]
    write(tmp_path / "mt" / "question.jsonl", *own)
    (one,) = score(path)["results"]
    assert list(one["categories"]) == ["poems"]
    assert one["categories_from"] == str(tmp_path / "mt" / "question.jsonl")


WEIGHTS = ",np.tanh(std_delta_len),instruction_difficulty,not_gamed_baseline.astype(float)\nbase,0,0,0\nm,-1,0.5,0.25\n"
HARD = "index,instruction_difficulty\n" + "".join(f"{i},{i / 10 - 0.5}\n" for i in range(12))


def lengths() -> list[dict[str, Any]]:
    """Twelve annotations that a regression can tell apart."""
    shares = (0.9, 0.2, 0.7, 0.4, 0.6, 0.3, 0.8, 0.5, 0.1, 0.6, 0.4, 0.7)
    return [annotated(str(i), 1 + share, output_2="x" * (3 * i % 17 + 1)) for i, share in enumerate(shares)]


def test_tables_beside_the_annotations_are_used_and_said(tmp_path, score, said):
    path = write(tmp_path / "annotations.json", *lengths())
    assert score(path)["results"][0]["models"]["m"]["length_controlled"] is None
    (tmp_path / "weights.csv").write_text(WEIGHTS)
    (tmp_path / "difficulty.csv").write_text(HARD)
    found = score(path)
    assert found["weights"] == str(tmp_path / "weights.csv")
    assert found["difficulty"] == str(tmp_path / "difficulty.csv")
    shares = [1 / (1 + math.exp(-(0.25 + 0.5 * (i / 10 - 0.5)))) for i in range(12)]
    controlled = found["results"][0]["models"]["m"]["length_controlled"]
    assert controlled["by_weights"]["win_rate"] == pytest.approx(100 * fmean(shares))
    assert f"weights: {tmp_path / 'weights.csv'}" in said(path).replace("\n", "")


def test_a_file_that_lacks_rows_is_matched_with_the_first_difficulties_as_published(tmp_path, score):
    path = write(tmp_path / "annotations.json", *lengths()[:8])
    (tmp_path / "weights.csv").write_text(WEIGHTS)
    (tmp_path / "difficulty.csv").write_text(HARD)
    found = score(path)["results"][0]["models"]["m"]["length_controlled"]["by_weights"]
    shares = [1 / (1 + math.exp(-(0.25 + 0.5 * (i / 10 - 0.5)))) for i in range(8)]
    assert (found["n"], found["win_rate"]) == (8, pytest.approx(100 * fmean(shares)))


def test_a_fit_that_cannot_be_is_a_warning_and_the_rest_is_shown(tmp_path, score):
    path = write(tmp_path / "annotations.json", *(annotated(str(i), 1 + i % 2) for i in range(12)))
    (tmp_path / "difficulty.csv").write_text(HARD)
    found = score(path)["results"][0]["models"]["m"]
    assert found["mean"] == 0.5
    assert found["length_controlled"]["fit"] is None
    assert "no rate at equal length could be fitted" in found["warnings"][0]


# Warnings.


def test_rows_that_are_scored_twice_are_counted_and_told(tmp_path, score, said):
    rows = [judged(81, 8), judged(81, 6, turn=2), judged(82, 4), judged(81, 2), judged(81, -1, turn=2)]
    path = write(tmp_path / "x.jsonl", *rows)
    found = score(path)["results"][0]["models"]["m"]
    assert (found["mean"], found["repeated"], found["first_run"]["mean"]) == (5, 2, 6)
    assert "2 of 5 rows are scored a second time under the same names" in said(path)
    shown = score(write(tmp_path / "a.json", annotated("1", 2), annotated("1", 1), annotated("2", 1)))
    assert shown["results"][0]["models"]["m"]["repeated"] == 1


def test_a_failed_judgment_lowers_the_coverage_and_no_mean(tmp_path, score):
    found = score(write(tmp_path / "x.jsonl", judged(81, 8), judged(82, -1), judged(83, 4)))["results"][0]
    expected = mean_estimate([Observation("81", "1", 8.0), Observation("83", "1", 4.0)], (1.0, 10.0))
    model = found["models"]["m"]
    assert (model["mean"], model["low"], model["high"]) == (expected.mean, expected.low, expected.high)
    assert model["coverage"] == pytest.approx(2 / 3)
    assert "coverage 67%: 2 of 3 could be scored" in model["warnings"][0]


def test_nothing_at_all_scored_has_no_mean_and_says_so(tmp_path, score, said):
    path = write(tmp_path / "x.jsonl", judged(81, -1), judged(82, -1))
    assert score(path)["results"][0]["models"]["m"]["mean"] is None
    assert "coverage 0%: 0 of 2 could be scored" in said(path)


def test_what_other_models_were_asked_more_is_told(tmp_path, score):
    rows = [judged(q, 5, model="m") for q in (81, 82, 83)] + [judged(81, 5, model="n")]
    models = score(write(tmp_path / "x.jsonl", *rows))["results"][0]["models"]
    assert models["m"]["warnings"] == []
    assert models["n"]["warnings"] == ["2 of 3 that other models here were asked are missing"]


def test_what_the_text_says_otherwise_is_told_and_what_is_stored_counts(tmp_path, score):
    rows = [judged(81, 8, judgment="[[3]]"), judged(82, -1, judgment="[[7]]"), judged(83, 5, judgment="[[5]]")]
    found = score(write(tmp_path / "x.jsonl", *rows))["results"][0]["models"]["m"]
    assert found["mean"] == 6.5
    assert [(row["stored"], row["said"]) for row in found["unlike"]] == [(8, 3), (None, 7)]
    assert any("2 stored otherwise than the judge's reply reads" in warning for warning in found["warnings"])


# Bad files.


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "", "a.json: the file is empty"),
        ("a.json", "[]", "a.json: the file is empty"),
        ("a.json", '[{"instruction": "a", "gener', "a.json:1: not JSON"),
        ("a.jsonl", '{"question_id": 81, "mod', "a.jsonl:1: not JSON"),
        ("a.jsonl", json.dumps(judged(81, 8)) + '\n{"question_id": 81', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"a": 1}', "a.jsonl:1: no result has columns a; expected annotations of AlpacaEval"),
        ("a.json", "[1]", "a.json:1: no result has a number"),
        ("a.csv", "name,win_rate,standard_error\nm,1,2\n", "it is like a leaderboard of AlpacaEval, but lacks n_total"),
        (
            "a.jsonl",
            json.dumps({k: v for k, v in judged(81, 8).items() if k not in ("judge", "turn")}),
            "a.jsonl:1: it is like judgments of FastChat, but lacks judge, turn; expected annotations of AlpacaEval",
        ),
        ("a.jsonl", json.dumps(judged(81, 8, turn="x")), "a.jsonl:1: 'turn' is 'x'"),
        ("a.json", json.dumps([annotated("1", "good")]), "a.json:1: 'preference' is 'good'"),
        ("a.txt", "hello", "a.txt:1: no result has columns text"),
        ("a.bin", "hello", "a.bin: a file of an unknown kind"),
        ("a.jsonl.gz", "hello", "a.jsonl.gz: the compressed file is damaged"),
        (
            "scores.json",
            '{"suites": {"chat": {"models": {"a": 1}}}}',
            "scores.json: these are not scores as potstill writes them (suites.chat.protocol: Field required)",
        ),
    ],
)
def test_a_bad_file_is_one_line_and_code_2(name, text, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_text(text)
    assert main(["score", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_what_is_not_there_or_empty_is_one_line(tmp_path, capsys):
    for path, words in ((tmp_path / "none.json", "there is no such file"), (tmp_path, "nothing here was scored")):
        assert main(["score", str(path)]) == 2
        assert words in capsys.readouterr().err
    path = write(tmp_path / "a.json", annotated("1", 2))
    assert main(["score", str(path), "--baseline", "nobody"]) == 2
    assert "nothing here was scored against 'nobody'" in capsys.readouterr().err
    assert main(["score", str(path), "--weights", str(path)]) == 2
    assert "it holds neither weights nor difficulties" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"value": "5"}, "'value' is text; expected a number from 0 to 10"),
        ({"value": [1]}, "'value' is a list; expected a number"),
        ({"value": True}, "'value' is true or false; expected a number"),
        ({"value": math.nan}, "'value' is nan; expected a number from 0 to 10"),
        ({"value": math.inf}, "'value' is inf; expected"),
        ({"value": 1e308}, "'value' is 1e+308; expected a number from 0 to 10"),
        ({"value": 10**400}, "'value' is 1000"),
        ({"value": 11}, "'value' is 11; expected a number from 0 to 10"),
        ({"value": -0.5}, "'value' is -0.5; expected"),
        ({"weight": 0}, "'weight' is 0; expected a number above 0"),
        ({"weight": -1}, "'weight' is -1; expected a number"),
        ({"weight": "1"}, "'weight' is text; expected a number"),
        ({"category": ["math"]}, "'category' is a list; expected text"),
        ({"question": ["q"]}, "'question' is a list; expected text"),
        ({"stratum": None}, "'stratum' is missing; expected text"),
        ({"model": "z"}, "scores.json has no 'z' in a suite 'chat'"),
        ({"suite": "z"}, "scores.json has no 'a' in a suite 'z'"),
        ({"question": "2"}, "question '2', part '1' of 'a' stands there twice; expected it once"),
    ],
)
@pytest.mark.parametrize("verb", ["score", "compare"])
def test_a_value_that_cannot_be_is_one_line_with_its_number(verb, changed, message, tmp_path, capsys):
    path = evaluation(tmp_path / "kept") / "observations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:1], json.dumps(json.loads(lines[1]) | changed), *lines[2:]]))
    assert main([verb, *[str(path.parent)] * (2 if verb == "compare" else 1)]) == 2
    said = capsys.readouterr().err
    assert f"observations.jsonl:{3 if changed.get('question') == '2' else 2}: {message}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("observations.jsonl", "3", "observations.jsonl:1: the row is a number; expected an object"),
        ("observations.jsonl", "[" * 100_000, "observations.jsonl:1: JSON that is nested too deeply"),
        ("observations.jsonl", "", "observations.jsonl: it holds 0 values of 'a' in 'chat'; expected 9"),
        ("observations.jsonl", "{}", "observations.jsonl:1: 'suite' is missing; expected text"),
        ("scores.json", "[" * 100_000, "scores.json: these are not scores as potstill writes them (Invalid JSON: rec"),
        ("scores.json", "[]", "scores.json: these are not scores as potstill writes them"),
        ("scores.json", '{"suites": {"chat": 5}}', "(suites.chat: Input should be"),
    ],
)  # fmt: skip
def test_an_evaluation_that_cannot_be_read_is_one_line(name, text, message, tmp_path, capsys):
    folder = evaluation(tmp_path / "kept")
    (folder / name).write_text(text)
    assert main(["score", str(folder)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("5", "(suites.chat.scale: Input should be a valid array)"),
        ("[1, true]", "(suites.chat.scale.1: Input should be a valid number)"),
        ('["1", 10]', "(suites.chat.scale.0: Input should be a valid number)"),
        ("[NaN, 10]", "(suites.chat.scale.0: Input should be a finite number)"),
    ],
)
def test_a_scale_that_is_none_is_one_line(scale, message, tmp_path, capsys):
    path = evaluation(tmp_path / "kept") / "scores.json"
    path.write_text(path.read_text().replace("[1.0, 10.0]", scale))
    assert main(["score", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_huge_values_without_a_highest_are_refused(tmp_path, capsys):
    """Two of 1e308 have no sum."""
    folder = evaluation(tmp_path / "kept")
    for path in (folder / "scores.json", folder / "observations.jsonl"):
        text = path.read_text().replace('"value": 2.0', '"value": 1e308').replace("mt_bench", "answer_loss")
        path.write_text(text.replace("[1.0, 10.0]", "[0.0, null]"))
    assert main(["score", str(folder)]) == 2
    assert "observations.jsonl:2: 'value' is 1e+308; expected a number from 0 to 1e+50" in capsys.readouterr().err
    assert main(["score", str(write(tmp_path / "x.jsonl", judged(81, 8), judged(82, 1e308)))]) == 2
    assert "x.jsonl:2: 'score' is 1e+308; expected a number" in capsys.readouterr().err


def test_values_that_do_leave_their_scale_are_read(tmp_path):
    """A judge's [[0]], and the pseudo-values of a rate at equal length; a mean of probabilities by its rounding."""
    rows = {
        "grades": (Measure("mt_bench", (1.0, 10.0)), 0.0),
        "wins/length_controlled": (Measure("alpaca_eval_length_controlled", (0.0, 1.0)), -0.4),
        "wins": (Measure("alpaca_eval", (0.0, 1.0), share=True), 1 + 1e-12),
    }
    results = {
        name: SuiteResult(measure, {"m": [Observation("q", "1", value), Observation("r", "1", None, 0.0)]})
        for name, (measure, value) in rows.items()
    }
    suites = {name: result.to_json() for name, result in results.items()}
    (tmp_path / "scores.json").write_text(json.dumps({"models": ["m"], "suites": suites}))
    write_observations(tmp_path, results)
    assert read_results(tmp_path) == results


def test_an_evaluation_that_was_cut_short_between_lines_is_refused(tmp_path, capsys):
    path = evaluation(tmp_path / "kept") / "observations.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert main(["score", str(path)]) == 2
    expected = "observations.jsonl: it holds 8 values of 'b' in 'chat'; expected 9, as scores.json counts"
    assert expected in capsys.readouterr().err


def test_an_evaluation_that_scored_nothing_has_no_results(tmp_path, capsys):
    (tmp_path / "scores.json").write_text('{"suites": {}}')
    write_observations(tmp_path, {})
    assert main(["score", str(tmp_path)]) == 2
    assert "nothing here was scored" in capsys.readouterr().err


def sealed(folder: Path) -> Path:
    """A sealed evaluation, with judgments beside its scores."""
    draft = evaluation(folder / "draft")
    said = [{"user": "Why?", "assistant": "So."}]
    write(draft / "answers.jsonl", *({"suite": "chat", "model": m, "id": "0", "turns": said} for m in ("a", "b")))
    write(draft / "fastchat" / "judge_single.jsonl", *(judged(81 + i, 2 + i % 3) for i in range(9)))
    head = {"stage": "scores", "kind": "evaluate", "version": 1, "produces": "scores", "key": "1", "seed": 0}
    seal(draft, folder / "sealed", {**head, "config": {}, "inputs": {}, "facts": {}})
    return folder / "sealed"


@pytest.mark.parametrize(
    ("name", "was", "becomes"),
    [
        ("observations.jsonl", '"value": 3.0', '"value": 4.0'),
        ("scores.json", "points", "pounds"),
        ("answers.jsonl", "Why?", "How?"),
        ("fastchat/judge_single.jsonl", '"score": 3', '"score": 4'),
    ],
)
def test_a_sealed_byte_that_changed_is_refused(name, was, becomes, tmp_path, score, capsys):
    folder = sealed(tmp_path)
    said = folder / name if name.startswith("fastchat") else folder
    assert score(said)["results"]
    assert main(["compare", str(said), str(said)]) == 0
    capsys.readouterr()
    path = folder / name
    path.write_text(path.read_text().replace(was, becomes))
    for verb in (["score", str(said)], ["compare", str(said), str(said)]):
        assert main(verb) == 2
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1)
        assert f"{path}: its bytes are not those that were sealed. Remove the folder" in shown.err
    (folder / "manifest.json").unlink()
    assert score(said)["results"]


def test_what_was_laid_beside_a_seal_is_read(tmp_path, score):
    folder = sealed(tmp_path)
    write(folder / "more.jsonl", judged(81, 5), judged(82, 6))
    assert score(folder / "more.jsonl")["results"][0]["models"]["m"]["n"] == 2


def test_links_and_devices_are_told_apart_from_files_that_are_not_there(tmp_path, capsys):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for path, words in ((loop, "this link leads nowhere"), (Path("/dev/zero"), "this is no regular file")):
        assert main(["score", str(path)]) == 2
        assert f"{path}: {words}" in capsys.readouterr().err


def test_the_standard_error_is_that_of_the_interval_where_questions_have_strata(tmp_path, score):
    """Half of each task right, one task easier: how tasks differ is no doubt of a mean over both."""
    rows = [Observation(f"{task}{i}", "", float(i < right), 1 / 12, task, task)
            for task, right in (("easy", 11), ("hard", 2)) for i in range(12)]  # fmt: skip
    results = {"board": SuiteResult(Measure("leaderboard", (0.0, 1.0), unit="points"), {"m": rows})}
    (tmp_path / "scores.json").write_text(json.dumps({"suites": {"board": results["board"].to_json()}}))
    write_observations(tmp_path, results)
    error = score(tmp_path)["results"][0]["models"]["m"]["standard_error"]
    variances = [p * (1 - p) / 11 for p in (11 / 12, 2 / 12)]  # of a share of 12, unbiased
    assert error == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_grades_beyond_the_scale_count_as_published_and_are_told(tmp_path, score):
    rows = [judged(81 + i, grade) for i, grade in enumerate((8, 6, 0, 11, -3, -1))]
    found = score(write(tmp_path / "x.jsonl", *rows))["results"][0]["models"]["m"]
    assert (found["mean"], found["n"], found["failed"]) == (pytest.approx(22 / 5), 5, 1)
    (said,) = [warning for warning in found["warnings"] if "scale" in warning]
    assert said.startswith("2 scores lie beyond the scale (84, turn 1: 11; 85, turn 1: -3); counted as stored")
    assert "of the others alone 4.667 [" in said


def test_no_number_counts_as_failed_not_as_a_number(tmp_path, score):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([annotated("1", 2), annotated("2", math.nan)]))
    assert score(path)["results"][0]["models"]["m"]["failed"] == 1


# What others read.


def test_results_by_suite_for_whoever_compares(tmp_path):
    path = write(tmp_path / "x.jsonl", judged(81, 8), judged(82, -1))
    ((found,),) = read_suites(path).values()
    assert list(read_suites(path)) == ["mt_bench"]
    assert [row.value for row in found.result.observations["m"]] == [8, None]
    rows = [annotated("1", 2), annotated("1", 2, annotator="other")]
    assert list(read_suites(write(tmp_path / "a.json", *rows))) == ["alpaca_eval@judge@base", "alpaca_eval@other@base"]
    assert list(read_suites(evaluation(tmp_path / "kept"))) == ["chat"]


def test_one_suite_in_two_files(tmp_path):
    write(tmp_path / "one.jsonl", judged(81, 8))
    write(tmp_path / "two.jsonl", judged(81, 3, model="n"))
    found = read_suites(tmp_path)["mt_bench"]
    assert [list(one.result.observations) for one in found] == [["m"], ["n"]]


def test_scoring_loads_no_torch(tmp_path):
    path = write(tmp_path / "annotations.json", *lengths())
    (tmp_path / "difficulty.csv").write_text(HARD)
    program = (
        "import sys; from potstill.cli import main; main(['score', sys.argv[1]])\n"
        "print(sorted({'torch', 'transformers', 'openai', 'datasets'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines()[-1] == "[]"


def test_a_run_is_scored_by_what_is_sealed_in_it_now(tmp_path, score):
    workspace = Workspace(tmp_path / "run")
    draft = evaluation(tmp_path / "run" / "work" / "draft")
    target = workspace.artifacts / "scores-1"
    head = {"stage": "scores", "kind": "evaluate", "version": 1, "produces": "scores", "key": "1", "seed": 0}
    seal(draft, target, {**head, "config": {}, "inputs": {}, "facts": {}})
    workspace.link("scores", target)
    made = {"scores": Asked(kind="evaluate", produces="scores", folder="scores-1")}
    made["sft"] = Asked(kind="sft", produces="model", folder="sft-1")
    workspace.note_run(Description(recipe="r", source="r.yaml", overrides=[], stages=made))
    for path in (workspace.path, tmp_path):
        (one,) = score(path)["results"]
        assert (one["file"], one["suite"]) == (str(target), "chat")
    made["report"] = Asked(kind="report", produces="report", folder="report-2")
    made["scores"] = Asked(kind="evaluate", produces="scores", folder="scores-2")
    workspace.note_run(Description(recipe="r", source="r.yaml", overrides=["sft.epochs=2"], stages=made))
    (workspace.path / "summary.json").write_text("{}")
    for side in (str(workspace.path), f"{workspace.path}:base", f"{workspace.path}:scores:base"):
        with pytest.raises(DataError, match=r"nothing is scored yet of what this run was last|no sealed scores"):
            read_side(side)
    with pytest.raises(StorageError, match="nothing is scored here yet"):
        potstill.open_run(workspace.path).scores()
