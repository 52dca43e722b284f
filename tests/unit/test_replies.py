"""`potstill journal` and `status` on a run that asked a teacher: what was paid for can be seen, priced and exported."""

import json
import sqlite3
from pathlib import Path

import pytest
from stub_server import Stub

from potstill.cli import main
from potstill.recipe import load_recipe
from potstill.runs.plan import make_plan
from potstill.runs.trial import run_trial
from potstill.runs.workspace import Hashes, Workspace
from potstill.teachers.journal import JOURNAL

RECIPE = """
name: paid
budget_usd: {budget}
models: {{t: {{endpoint: "{url}", name: m, price: {{input: 1000, output: 2000}}}}}}
stages: {{chats: {{kind: converse, teacher: t, prompts: prompts.jsonl, turns: [1, 1]}}}}
"""


def answer(body: dict[str, object]) -> str:
    return f"echo {body['messages'][-1]['content']} [red]"  # type: ignore[index]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with five replies of 5 + 3 tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(5)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Stub(answer=answer) as stub:
        Path("recipe.yaml").write_text(RECIPE.format(url=stub.base_url, budget=20))
        assert main(["run", "recipe.yaml"]) == 0
    return tmp_path / "runs" / "paid"


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_counted_and_priced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "journal", "paid")
    assert told.split("\n")[2].split()[:6] == ["chats", "m", "5", "25", "15", "0.0550"]
    assert "5 replies in" in told
    assert "$0.0550 at the prices of the time" in told
    assert "$0.0000 at this price" in said(capsys, "journal", "paid", "price", "--input", "0", "--output", "0")
    assert "$0.0700" not in told
    assert "$0.0700 at this price" in said(capsys, "journal", "paid", "price", "--input", "1000", "--output", "3000")
    assert "no price is given" in said(capsys, "journal", "paid", "price", code=2)
    status = said(capsys, "status", "paid")
    assert "5 replies are kept; 40 tokens in all; $0.05 spent of $20.00, $19.95 left" in status


def test_listed_and_shown_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "journal", "paid", "list", "--rows", "2")
    assert "2 of 5 replies; 3 more (--rows)" in told
    assert "[red]" in told, "what a model says is no markup"
    key = told.split("\n")[1].split()[0]
    whole = json.loads(said(capsys, "journal", "paid", "show", "--key", key))
    assert whole["request"]["messages"][-1]["content"] == "q0"
    assert whole["reply"]["choices"][0]["message"]["content"] == "echo q0 [red]"
    assert "no reply has a key" in said(capsys, "journal", "paid", "show", "--key", "zz", code=2)


def test_exported_as_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in said(capsys, "journal", "paid", "export").splitlines()]
    # They stand in the order in which the replies came, which nothing fixes.
    assert sorted(row["request"]["messages"][0]["content"] for row in rows) == [f"q{i}" for i in range(5)]
    assert {row["usd"] for row in rows} == {0.011}
    said(capsys, "journal", "paid", "export", "--to", "out.jsonl")
    assert [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()] == rows
    assert "out.jsonl" in said(capsys, "journal", "paid", "export", "--to", "out.jsonl", code=2), (
        "nothing is overwritten"
    )
    assert len(Path("out.jsonl").read_text().splitlines()) == 5
    assert said(capsys, "journal", "paid", "export", "--stage", "other") == ""


def test_pruned_replies_stay_paid_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "add --yes" in said(capsys, "journal", "paid", "prune", code=2)
    assert (
        said(capsys, "journal", "paid", "prune", "--before", "2000-01-01")
        == "0 replies forgotten; what they cost stays counted.\n"
    )
    assert "5 replies forgotten" in said(capsys, "journal", "paid", "prune", "--stage", "chats")
    assert "$0.0550 at the prices of the time" in said(capsys, "journal", "paid")
    assert said(capsys, "journal", "paid", "export") == ""


def test_a_journal_of_another_version_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(run / JOURNAL) as other:
        other.execute("PRAGMA user_version = 1")
    other.close()
    assert "was written by another version of potstill. Move it away" in said(capsys, "journal", "paid", code=2)


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (run / "artifacts").iterdir():
        file.rename(run / "away")
    (run / JOURNAL).unlink()
    with Stub(answer=answer) as stub:
        Path("recipe.yaml").write_text(RECIPE.format(url=stub.base_url, budget=2.08))
        told = said(capsys, "run", "recipe.yaml", "chats.max_tokens=1000", code=2)
        assert told.startswith("t, for chats: budget_usd is 2.08: 0.0330 are spent")
        assert "Raise budget_usd and run again" in told
        assert not any((run / "artifacts").iterdir()), "nothing is sealed"
        paid = stub.answered.total()
        assert paid == 3
        assert main(["run", "recipe.yaml", "chats.max_tokens=1000", "budget_usd=20"]) == 0
        assert set(stub.answered.values()) == {1}


@pytest.mark.parametrize("value", ["0", "-1", "true", "lots", ".inf"])
def test_a_budget_is_a_number_of_dollars(run: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert "budget_usd is" in said(capsys, "plan", "recipe.yaml", f"budget_usd={value}", code=2)


def test_a_budget_needs_prices(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "run", "recipe.yaml", "t.price=null", "t.revision=b", code=2)
    assert "there is a budget, but the model 't' that 'chats' asks has no price" in told


@pytest.mark.parametrize("time", ["yesterday", "2026-13-45", "31.01.2026"])
def test_a_time_that_is_none_prunes_nothing(run: Path, capsys: pytest.CaptureFixture[str], time: str) -> None:
    assert "is no time; expected one such as 2026-01-31" in said(
        capsys, "journal", "paid", "prune", "--before", time, code=2
    )
    assert "no reply is of 'nosuch'. Name one of: chats" in said(
        capsys, "journal", "paid", "prune", "--stage", "nosuch", code=2
    )
    assert "5 replies in" in said(capsys, "journal", "paid")


def test_what_was_pruned_is_no_longer_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "journal", "paid", "prune", "--stage", "chats")
    assert "5 replies in" in (told := said(capsys, "journal", "paid"))
    assert "5 of them pruned since" in told
    assert "0 replies are kept" in said(capsys, "status", "paid")


def test_plan_tells_what_is_kept_and_what_is_left_of_the_budget(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "plan", "recipe.yaml", "chats.temperature=0.1", "budget_usd=0.06")
    assert "5 replies that these stages asked for are kept already" in told
    assert "Of the budget of $0.06, $0.01 are left: too little, so the run would stop on the way" in told


CURATED = """
name: paid
models: {{t: {{endpoint: "{url}", name: m}}, u: {{endpoint: "{url}", name: n}}}}
stages:
  chats: {{kind: converse, teacher: t, prompts: prompts.jsonl, turns: [1, 1]}}
  curated: {{kind: curate, data: chats, min_words: 4}}
  answers: {{kind: sample, models: [t, u], prompts: curated, per_prompt: 2}}
"""


def test_a_trial_tells_what_curation_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"q{i}"}]} for i in range(90)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def every_third_is_long(body: dict[str, object]) -> str:
        number = int(body["messages"][-1]["content"][1:])  # type: ignore[index]
        return f"a long answer number {number}" if number % 3 == 0 else f"short {number}"

    with Stub(answer=every_third_is_long) as stub:
        Path("recipe.yaml").write_text(CURATED.format(url=stub.base_url))
        recipe = load_recipe("recipe.yaml", [])
        assert run_trial(recipe, Path("runs/paid"), 30) == {}
        planned = make_plan(recipe, Workspace(Path("runs/paid")), Hashes(Path("runs/paid/hashes.json"))).steps
        assert [planned[name].expected.rows for name in ("chats", "curated", "answers")] == [90, 30, 30]
        assert planned["answers"].expected.calls == 60, "as many as will be asked, not two for each dialogue"
        assert main(["plan", "recipe.yaml", "--trial", "30", "curated.min_words=9"]) == 0
        assert "curated could not be tried on 30 rows: chats: no dialogue is left" in capsys.readouterr().err


def test_a_trial_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"id": "p", "messages": [{"role": "user", "content": "q"}]}\n' * 3)
    with Stub(answer=answer) as stub:
        Path("recipe.yaml").write_text(RECIPE.format(url=stub.base_url, budget=20))
        assert "a trial tells better" not in said(capsys, "plan", "recipe.yaml", "--trial", "2")
    assert "1 replies are kept" in said(capsys, "status", "paid")
    assert "chats" in said(capsys, "journal", "paid")


def test_a_folder_that_is_not_there_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "journal", "paid", "export", "--to", "nodir/x", code=2)
    assert told == "nodir/x: the folder nodir is not there. Make it first, or name another with --to.\n"
    Path("file").write_text("")
    assert "the folder file is no folder" in said(capsys, "journal", "paid", "export", "--to", "file/x", code=2)
