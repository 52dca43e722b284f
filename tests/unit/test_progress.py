"""What a run leaves behind of how far it is, while it works, when it ends, and when the disk says no."""

import json

import fakes
import pytest

from potstill.errors import PotstillError
from potstill.recipe import load_recipe
from potstill.runs import progress
from potstill.runs.pipeline import Silent, run
from potstill.runs.progress import PROGRESS_FILE, Progress, ProgressFile, read_progress


@pytest.fixture
def recipe_file(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(fakes.RECIPE)
    return path


class Reader(Silent):
    """Reads the note whenever it is told something."""

    def __init__(self, folder):
        self.folder, self.states = folder, []

    def started(self, step):
        found = read_progress(self.folder)
        self.states.append((step.name, found.state, found.stage))


def test_the_note_says_which_stage_runs_and_that_all_is_done(recipe_file, tmp_path):
    reader = Reader(tmp_path / "out")
    run(load_recipe(str(recipe_file), ()), tmp_path / "out", reader)
    assert reader.states
    assert all((state, stage) == ("running", name) for name, state, stage in reader.states)
    found = read_progress(tmp_path / "out")
    assert (found.state, found.stage) == ("finished", "")
    assert [one.text for one in found.warnings] == ["the iron is cold", "the iron is cold"]
    assert not list((tmp_path / "out").glob(".progress*"))


def test_run_json_says_what_each_stage_reads(recipe_file, tmp_path):
    run(load_recipe(str(recipe_file), ()), tmp_path / "out", until="loud")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["loud"]["reads"] == ["first"]


class Step:
    name = "sft"


@pytest.fixture
def note(tmp_path):
    class Workspace:
        path = tmp_path

    made = ProgressFile()
    made.planned(None, Workspace)
    return made


def test_many_reports_a_second_are_one_note(note, tmp_path, monkeypatch):
    writes = []
    write = ProgressFile._write
    monkeypatch.setattr(ProgressFile, "_write", lambda self: (writes.append(1), write(self)))
    note.started(Step)
    for i in range(5000):
        note.progress(Step, i, 5000, "steps", {"loss": 1.0})
    assert len(writes) <= 3
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_NOTES", 0.0)
    note.progress(Step, 4000, 5000, "steps", {"loss": 1.0})
    assert read_progress(tmp_path).done == 4000


def test_what_did_not_finish_is_named(note, tmp_path):
    note.started(Step)
    note.failed(Step, ValueError("no"))
    assert (read_progress(tmp_path).state, read_progress(tmp_path).stage) == ("failed", "sft")


def test_a_disk_that_refuses_the_note_ends_no_run(note, tmp_path):
    (tmp_path / PROGRESS_FILE).unlink()
    (tmp_path / PROGRESS_FILE).mkdir()
    note.started(Step)
    note.failed(Step, ValueError("no"))
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": "asleep"}', "\x00"])
def test_a_damaged_note_is_no_note(tmp_path, damage):
    (tmp_path / PROGRESS_FILE).write_text(damage)
    assert read_progress(tmp_path) is None


def test_the_time_left_is_told_by_the_pace_since_counting_began():
    half = Progress(state="running", done=60, first=10, total=110, since=100.0, at=150.0)
    assert half.seconds_left == pytest.approx(50.0)
    assert half.share == pytest.approx(60 / 110)
    assert Progress(state="running", done=5, total=0, since=0.0, at=9.0).seconds_left is None
    assert Progress(state="running", done=0, total=9, since=0.0, at=9.0).seconds_left is None


def test_a_stage_that_fails_leaves_its_name(recipe_file, tmp_path, monkeypatch):
    from potstill.runs import pipeline

    def refuse(*given):
        raise PotstillError("here", "no", "stop")

    monkeypatch.setattr(pipeline, "refuse_overlap", refuse)
    with pytest.raises(PotstillError):
        run(load_recipe(str(recipe_file), ()), tmp_path / "out")
    assert read_progress(tmp_path / "out").state == "failed"
