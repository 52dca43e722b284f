"""Whole runs of evaluations against the miniature's server, as recipes: compared, sealed, gone on with, planned."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from potstill.artifact import read_json
from potstill.cli import main
from potstill.errors import RecipeError
from potstill.evaluation.comparing import label_share
from potstill.evaluation.scores import read_results
from potstill.miniature.mind import label_odds, reply
from potstill.miniature.server import complete
from potstill.miniature.world import world
from potstill.recipe import load_recipe
from potstill.records import Message
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.scoring.results import read_suites
from potstill.sources import EndpointModel
from potstill.teachers.base import Request
from potstill.teachers.pairwise import render_pair_prompt
from potstill.teachers.wire import read_reply, request_body

RECIPE = """
name: duel
servers:
  world: {kind: miniature, entities: 40}
models:
  sage: {endpoint: world, name: sage}
  forger: {endpoint: world, name: forger}
  rambler: {endpoint: world, name: rambler}
  judge: {endpoint: world, name: judge}
stages:
  questions: {kind: miniature, server: world, part: questions, per_category: 3}
  scores:
    kind: evaluate
    models: [sage, forger]
    judge: judge
    max_tokens: 64
    suites:
      chat: {protocol: mt_bench, questions: questions}
      pairs: {protocol: mt_bench_pairs, questions: questions, baseline: rambler}
      words: {protocol: alpaca_eval, questions: questions, baseline: rambler, orders: both}
      labels: {protocol: alpaca_eval, questions: questions, baseline: rambler, verdict: logprob}
  report: {kind: report, scores: [scores]}
"""


def sealed(folder: Path) -> Path:
    return next(path.parent for path in folder.glob("runs/duel/artifacts/scores-*/scores.json"))


@pytest.fixture
def duel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("duel.yaml").write_text(RECIPE)
    assert main(["run", "duel.yaml"]) == 0
    return sealed(tmp_path)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_that_compares(
    duel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = read_json(duel / "scores.json")["suites"]
    for name in ("pairs", "words", "labels"):
        rows = suites[name]["models"]
        assert set(rows) == {"sage", "forger"}
        assert rows["sage"]["coverage"] == 1.0
        assert rows["sage"]["low"] > rows["forger"]["mean"]  # it knows; the other invents
    facts = read_json(duel / "manifest.json")["facts"]["notes"]
    assert facts["words"]["contradictory"] == facts["pairs"]["contradictory"] == 0  # a judge that checks likes no place
    ((alone,),) = read_suites(duel / "alpaca_eval/labels/sage/annotations.json").values()
    ours = read_results(duel)["labels"].to_json()["models"]["sage"]
    assert alone.result.to_json()["models"]["sage"] == pytest.approx(ours)
    ((pairs,),) = read_suites(duel / "fastchat/pairs/model_judgment/judge_pair.jsonl").values()
    assert pairs.result.to_json()["models"] == read_results(duel)["pairs"].to_json()["models"]
    page = (tmp_path / "runs/duel/report.html").read_text()
    assert "compared with a baseline" in page
    assert "won, a difference of" in page
    for path in ("alpaca_eval", "fastchat"):
        capsys.readouterr()
        assert main(["score", str(duel / path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["results"]
        means = {
            (Path(one["file"]).parts[-3], name): row["mean"] for one in told for name, row in one["models"].items()
        }
        assert means == pytest.approx(
            {
                (at, name): suites[at]["models"][name]["mean"]
                for at in (("words", "labels") if path == "alpaca_eval" else ("chat", "pairs"))
                for name in ("sage", "forger")
            }
        )
    before = bytes_of(duel)
    other = tmp_path / "again"
    other.mkdir()
    monkeypatch.chdir(other)
    Path("duel.yaml").write_text(RECIPE)
    assert main(["run", "duel.yaml", "--until", "scores"]) == 0
    again = bytes_of(sealed(other))
    assert {name for name in before if before[name] != again.get(name)} == set()
    assert before.keys() == again.keys()


def test_answers_without_their_models_and_judgments_without_their_judge(
    duel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of one evaluation, judged in another: nobody is asked for an answer, and for no judgment twice."""
    files = {f"fastchat/pairs/model_answer/{name}.jsonl": f"{name}.jsonl" for name in ("sage", "forger", "rambler")}
    files |= {"fastchat/pairs/model_judgment/judge_pair.jsonl": "pair.jsonl"}
    for source, name in files.items():
        Path(name).write_text((duel / source).read_text())
    kept = Path("pair.jsonl").read_text().splitlines(keepends=True)
    Path("pair.jsonl").write_text("".join(kept[:-5]))
    later = (
        RECIPE.split("    suites:")[0]
        .replace("models: [sage, forger]", "models: []")
        .replace("name: duel", "name: later")
    )
    later += """    suites:
      pairs:
        {protocol: mt_bench_pairs, questions: questions, baseline: rambler.jsonl, judgments: pair.jsonl,
         recorded: {sage: sage.jsonl, forger: forger.jsonl}}
"""
    Path("later.yaml").write_text(later)
    assert main(["run", "later.yaml"]) == 0
    folder = next(path.parent for path in tmp_path.glob("runs/later/artifacts/scores-*/scores.json"))
    assert read_json(folder / "scores.json")["suites"]["pairs"] == read_json(duel / "scores.json")["suites"]["pairs"]
    assert read_json(folder / "manifest.json")["facts"]["notes"]["pairs"]["judgments_taken"] == len(kept) - 5
    capsys.readouterr()
    assert main(["journal", "later"]) == 0
    counts = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("scores")]
    assert [(words[1], int(words[2])) for words in counts] == [("judge", 2 * 5)]


def test_what_a_plan_says_of_it_comes_true(duel: Path, tmp_path: Path) -> None:
    recipe = load_recipe("duel.yaml", [])
    plan = make_plan(recipe, Workspace(tmp_path / "elsewhere"), Hashes(tmp_path / "hashes.json"))
    expected = plan.steps["scores"].expected
    lines = [json.loads(line) for line in (duel / "answers.jsonl").read_text().splitlines()]
    assert expected.rows == len(lines)
    turns = sum(len(line["turns"]) for line in lines if line["suite"] == "pairs")
    answers = turns + 2 * 3 * 24  # pairs and chat share theirs; each of the other two asks at a temperature of its own
    assert expected.calls == answers + 2 * 48 + 2 * 2 * 48 + 2 * 2 * 24 + 2 * 24


def test_a_list_of_protocols_is_short_for_their_defaults() -> None:
    short = RECIPE.split("    suites:")[0].replace("kind: evaluate", "kind: evaluate\n    suites: [mt_bench]")
    Path("short.yaml").write_text(short)
    recipe = load_recipe("short.yaml", [])
    links = {link.field: link.name for link in recipe.stages["scores"].links}
    assert links["suites.mt_bench.questions"] == "shipped:dialogues"
    plan = make_plan(recipe, Workspace(Path("elsewhere")), Hashes(Path("hashes.json")))
    assert plan.steps["scores"].expected.calls == 2 * 2 * 160  # answers and judgments of eighty dialogues, two models
    both = load_recipe("short.yaml", ["stages.scores.suites=[mt_bench, alpaca_eval]"])
    plan = make_plan(both, Workspace(Path("elsewhere")), Hashes(Path("hashes.json")))
    assert plan.steps["scores"].expected.calls == 2 * 2 * 160 + 2 * 200 + 200  # the first model is the baseline
    Path("short.yaml").write_text(short.replace("[mt_bench]", "[mt_bnch]"))
    with pytest.raises(RecipeError, match=r"short.yaml:1[0-9]: .*mt_bnch.*mt_bench"):
        load_recipe("short.yaml", [])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def comparison(one: str, other: str) -> dict[str, Any]:
    asked = (Message(role="user", content="What is 2 plus 3?"),)
    request = Request(render_pair_prompt(asked, [one, other], labels=("m", "M")), 1, 1.0, top_logprobs=5)
    return request_body(EndpointModel(endpoint="http://x", name="judge"), request)


def test_the_miniatures_judge_tells_its_odds() -> None:
    """Over the wire: a point between two answers is worth one in log-odds, and its place is worth nothing."""
    known = world(0, 40)
    body = comparison("It is 5.", "It is 6.")
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    heard = read_reply(json.dumps(complete(known, body)))
    assert heard.text == heard.likeliest[0][0] == "m"
    forward, _ = label_share(heard, ("m", "M"), "judge")
    turned = read_reply(json.dumps(complete(known, comparison("It is 6.", "It is 5."))))
    backward, _ = label_share(turned, ("m", "M"), "judge")
    assert forward is not None
    assert forward == pytest.approx(1 - (backward or 0))
    assert forward > 0.9
    margin = math.log(forward / (1 - forward))
    assert margin == pytest.approx(round(margin))
    messages = body["messages"]
    assert reply(known, "judge", messages, 1.0, 0) == "m"
    assert label_odds(known, "judge", [{"role": "user", "content": "Hi"}], 1.0, 0) is None


def test_a_server_without_logprobs_gives_none() -> None:
    raw = {"choices": [{"message": {"content": "m"}, "finish_reason": "length"}]}
    assert read_reply(json.dumps(raw)).likeliest == ()
    for bad in ({}, {"content": []}, {"content": [{"top_logprobs": [{"token": 3}]}]}, {"content": 3}, []):
        choice = raw["choices"][0] | {"logprobs": bad}
        assert read_reply(json.dumps({"choices": [choice]})).likeliest == ()


def test_a_request_without_logprobs_is_what_it_was() -> None:
    body = request_body(EndpointModel(endpoint="http://x", name="m"), Request((Message(role="user", content="x"),), 9))
    assert not {"logprobs", "top_logprobs"} & body.keys()  # or every reply that is kept would be asked for anew
