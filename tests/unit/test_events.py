"""What a run says: as lines, as JSON, quietly, and in the log that `potstill logs` reads."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import fakes
import pytest

from potstill.cli import main
from potstill.runs import events
from potstill.runs.events import LogFile, json_line, kept_events
from potstill.runs.workspace import Workspace

ROOT = Path(__file__).parents[2]
PROGRESS = re.compile(r": [\d,]+/[\d,]+ \w+")
"""Lines that are kept more often than they are shown."""


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(fakes.RECIPE)


@pytest.fixture
def potstill(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def told(text):
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_a_line_with_every_event_and_its_fields(potstill):
    code, out, err = potstill("run", "tiny.yaml", "--log", "json", "loud.seconds=0.1")
    assert (code, err) == (0, "")
    said = told(out)
    assert [said[0]["event"], said[-1]["event"]] == ["planned", "finished"]
    assert said[0]["to_run"] == ["first", "second", "loud", "made", "other", "asked"]
    assert said[0]["process"] == os.getpid()
    assert all(datetime.fromisoformat(event["time"]).tzinfo for event in said)
    of_loud = {event["event"]: event for event in said if event["stage"] == "loud"}
    assert (of_loud["started"]["kind"], of_loud["started"]["why"]) == ("shout", "new")
    assert of_loud["sealed"]["facts"]["dropped"] == {"hoarse": 1}
    assert of_loud["sealed"]["seconds"] >= 0.1
    assert (of_loud["sealed"]["place"], of_loud["sealed"]["of"]) == (3, 6)
    warned = [event for event in said if event["event"] == "warned"]
    assert [(event["level"], event["stage"], event["text"]) for event in warned] == [
        ("warning", "made", "the iron is cold"),
        ("warning", "other", "the iron is cold"),
    ]
    again = told(potstill("run", "tiny.yaml", "--log", "json", "loud.seconds=0.1")[1])
    assert [event["event"] for event in again] == ["planned", *["found"] * 6, "finished"]


def test_a_failure_is_an_event_with_its_line(potstill):
    code, out, err = potstill("run", "tiny.yaml", "--log", "json", "made.fail=known")
    assert code == 2
    (failed,) = [event for event in told(out) if event["level"] == "error"]
    assert (failed["event"], failed["stage"]) == ("failed", "made")
    assert failed["error"] == err.strip() == "the anvil: it is cold. Heat it."


def test_quiet_says_warnings_errors_and_the_result_and_the_log_has_the_rest(potstill):
    code, out, err = potstill("run", "tiny.yaml", "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "[4/6] made: warning: the iron is cold",
        "[5/6] other: warning: the iron is cold",
        "",
        "Talk to it  potstill chat runs/tiny other",
        "See it all  potstill view runs/tiny",
    ]
    kept = [json.loads(line) for line in Path("runs/tiny/logs/run.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in kept if event["event"] == "sealed"] == [
        "first", "second", "loud", "made", "other", "asked",
    ]  # fmt: skip
    code, out, _ = potstill("run", "tiny.yaml", "made.heat=2", "--quiet", "--log", "json")
    assert {event["event"] for event in told(out)} == {"warned", "finished"}
    code, out, err = potstill("run", "tiny.yaml", "made.fail=known", "--quiet")
    assert code == 2
    assert "did not finish" in out
    assert err.count("\n") == 1


def test_logs_prints_the_last_run_as_lines_or_as_it_is_kept(potstill):
    said = potstill("run", "tiny.yaml")[1].splitlines()
    code, out, _ = potstill("logs", "tiny.yaml")
    assert code == 0
    kept, shown = ([line for line in text if not PROGRESS.search(line)] for text in (out.splitlines(), said))
    assert kept[:-1] == [line for line in shown if line.startswith(("[", "tiny in"))]
    assert kept[-1] == "tiny in runs/tiny: all of it is sealed"
    potstill("run", "tiny.yaml", "made.fail=known")
    lines = potstill("logs", "runs/tiny")[1].splitlines()
    assert "[1/6] first: sealed before, 4 texts" in lines
    assert lines[-1] == "[4/6] made: did not finish: the anvil: it is cold. Heat it."
    assert potstill("logs", "tiny", "--all")[1].splitlines() == [*kept, *lines]
    assert told(potstill("logs", "tiny", "--log", "json")[1])[-1]["event"] == "failed"
    code, _, err = potstill("logs", "nowhere")
    assert (code, err.count("\n")) == (2, 1)


def test_following_ends_with_the_run_and_has_its_last_words():
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes", "run", "tiny.yaml", "loud.seconds=1", "--quiet"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not Path("runs/tiny/run.json").exists():
            assert process.poll() is None
        follower = subprocess.run(
            [sys.executable, "-m", "fakes", "logs", "tiny", "--follow"], capture_output=True, text=True, timeout=120
        )
    finally:
        process.wait()
    lines = follower.stdout.splitlines()
    assert follower.returncode == 0
    assert lines[-1] == "tiny in runs/tiny: all of it is sealed"
    assert len([line for line in lines if ": sealed in" in line]) == 6


def test_the_log_is_bounded_and_keeps_what_came_last(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "MOST_BYTES", 1000)
    workspace = Workspace(tmp_path)
    workspace.logs.mkdir()
    hear = LogFile(workspace.logs)
    for number in range(100):
        hear({"event": "doing", "number": number})
    kept = [event["number"] for event in kept_events(workspace)]
    assert kept == list(range(kept[0], 100))
    assert len(kept) > 20
    assert sum(path.stat().st_size for path in workspace.logs.iterdir()) <= 2000


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "run.jsonl").mkdir()
    LogFile(tmp_path)({"event": "doing"})
    assert (tmp_path / "run.jsonl").is_dir()


def test_a_cut_line_is_passed_over(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.logs.mkdir()
    (workspace.logs / "run.jsonl").write_text('{"event": "planned"}\n{"event": "star')
    assert list(kept_events(workspace)) == [{"event": "planned"}]


def test_figures_that_are_no_numbers_are_null():
    assert json_line({"figures": {"loss": float("nan"), "rate": 1.5}}) == '{"figures": {"loss": null, "rate": 1.5}}'


def test_every_event_and_field_is_documented(potstill):
    """The table of docs/command-line.md against what is said."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", page, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    said = told(potstill("run", "tiny.yaml", "--log", "json")[1]) + told(
        potstill("run", "tiny.yaml", "--log", "json", "made.fail=known")[1]
    )
    for event in said:
        own = set(event) - {"time", "level", "event", "stage", "place", "of"}
        assert own <= documented[event["event"]], event
    heard = {name for name in dir(events.Events) if not name.startswith("_")}
    assert set(documented) == heard
