"""The pipeline: keys, what reruns, what a kill leaves behind, who holds the folder."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import pytest

from potstill.artifact import find
from potstill.errors import BusyError, ModelError, PotstillError, RecipeError, StorageError
from potstill.recipe import load_recipe
from potstill.runs.pipeline import Silent, run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(fakes.RECIPE)
    return path


def load(path, *overrides):
    return load_recipe(str(path), overrides)


def keys(path, *overrides):
    folder = Path("unused")
    plan = make_plan(load(path, *overrides), Workspace(folder), Hashes(folder / "hashes.json"))
    return {name: step.key for name, step in plan.steps.items()}


def tree(folder):
    """Every sealed file with its bytes."""
    files = sorted(path for path in (folder / "artifacts").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def stamps(folder):
    paths = [folder / "artifacts", *(folder / "artifacts").rglob("*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


class Heard(Silent):
    """Notes which stages ran and which were found."""

    def __init__(self):
        self.ran, self.there, self.figures, self.warnings = [], [], [], []

    def found(self, step, artifact):
        self.there.append(step.name)

    def sealed(self, step, artifact, seconds):
        self.ran.append(step.name)

    def warned(self, step, text):
        self.warnings.append((step.name, text))

    def progress(self, step, done, total, unit, figures):
        self.figures.append((step.name, done, total, unit, dict(figures)))


def test_a_run_seals_every_stage_and_a_second_run_only_finds_them(recipe_file, tmp_path):
    out = tmp_path / "out"
    heard = Heard()
    sealed = run(load(recipe_file), out, heard)
    assert heard.ran == ["first", "second", "loud", "made", "other", "asked"]
    assert {name: artifact.produces for name, artifact in sealed.items()}["made"] == "model"
    assert all(artifact.damaged() is None for artifact in sealed.values())
    assert ("made", 10, 10, "steps", {"loss": 0.1}) in heard.figures  # through the child's pipe
    assert heard.warnings == [("made", "the iron is cold"), ("other", "the iron is cold")]
    assert sealed["made"].facts["threads"]
    assert (out / "loud").resolve() == sealed["loud"].path.resolve()
    weights = sealed["made"].path / "model.safetensors"
    (out / "plain").touch()
    assert weights.stat().st_mode == (out / "plain").stat().st_mode  # whoever may read this folder may read it
    log = (out / "logs" / "made.log").read_text()
    assert "printed by the stage" in log
    assert "warning: the iron is cold" in log
    assert list((out / "work").iterdir()) == []

    before, again = stamps(out), Heard()
    run(load(recipe_file), out, again)
    assert again.ran == []
    assert again.there == list(sealed)
    assert stamps(out) == before
    times = json.loads((out / "times.json").read_text())
    assert {entry["stage"] for entry in times.values()} == set(sealed)


def test_the_manifest_tells_what_the_artifact_is_made_from(recipe_file, tmp_path):
    sealed = run(load(recipe_file), tmp_path / "out", until="loud")
    manifest = sealed["loud"].manifest
    assert manifest["config"] == {"kind": "shout", "data": "first", "extra": None, "mark": "!", "seconds": 0.0}
    assert manifest["inputs"] == {"data": [{"name": "first", "key": sealed["first"].key}]}
    assert str(tmp_path) not in json.dumps(manifest)
    assert set(sealed) == {"first", "loud"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("first.count=5", {"first", "loud", "made", "asked"}),
        ("word=jar", {"first", "loud", "made", "asked"}),
        ("loud.mark=x", {"loud", "made", "asked"}),
        ("other.heat=0.6", {"other"}),
        ("second.text=far", {"second", "other"}),
        ("scribe.name=scribe-2", {"asked"}),
        ("scribe.endpoint=http://localhost:2/v1", set()),
        ("scribe.revision=b", {"asked"}),
        ("scribe.concurrency=3", set()),
        ("scribe.timeout_seconds=5", set()),
        ("scribe.price={input: 1, output: 2}", set()),
        ("name=another", set()),
        ("first.count=4", set()),
        ("other.heat=5e-1", set()),
        ("asked.models=[scribe, made]", {"asked"}),
        ("asked.suites.one.questions=first", {"asked"}),
        ("asked.suites={two: {questions: loud}}", {"asked"}),
        ("seed=4", {"first", "second", "loud", "made", "other", "asked"}),
    ],
)
def test_a_key_changes_for_what_changes_the_result_and_for_nothing_else(recipe_file, override, changed):
    before, after = keys(recipe_file), keys(recipe_file, override)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_stages_version_is_in_its_key(recipe_file, monkeypatch):
    from dataclasses import replace

    from fakes import shout

    from potstill import stages

    before = keys(recipe_file)
    newer = replace(shout.STAGE, version=2)
    real = stages.stage
    monkeypatch.setattr(stages, "stage", lambda kind: newer if kind == "shout" else real(kind))
    after = keys(recipe_file)
    assert {name for name in before if before[name] != after[name]} == {"loud", "made", "asked"}


def test_a_file_counts_by_its_bytes_not_by_its_place(tmp_path, monkeypatch):
    text = "name: f\nstages:\n  loud: {kind: shout, data: rows.jsonl}\n"
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "r.yaml").write_text(text)
        (tmp_path / place / "rows.jsonl").write_text('{"id": "1", "text": "x"}\n')
    one, two = keys(tmp_path / "a" / "r.yaml"), keys(tmp_path / "b" / "r.yaml")
    assert one == two
    (tmp_path / "b" / "rows.jsonl").write_text('{"id": "1", "text": "y"}\n')
    assert keys(tmp_path / "b" / "r.yaml") != one


def test_a_model_folder_counts_by_its_bytes(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"1")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: f\nmodels: {m: {path: model}}\nstages:\n  asked: {kind: asks, models: [m]}\n")
    before = keys(recipe)
    (model / ".cache").write_text("not part of it")
    assert keys(recipe) == before
    (model / "model.safetensors").write_bytes(b"2")
    assert keys(recipe) != before


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file, store = tmp_path / "big", tmp_path / "hashes.json"
    file.write_text("one")
    first = Hashes(store)
    one = first.file(file)
    first.save()
    monkeypatch.setattr("potstill.runs.workspace.hash_file", lambda path: pytest.fail("it was hashed again"))
    assert Hashes(store).file(file) == one
    monkeypatch.undo()
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert Hashes(store).file(file) != one


def test_one_changed_field_reruns_its_stage_and_its_readers_and_touches_nothing_else(recipe_file, tmp_path):
    out = tmp_path / "out"
    first = run(load(recipe_file), out)
    before, heard = stamps(out), Heard()
    second = run(load(recipe_file, "loud.mark=x"), out, heard)
    assert heard.ran == ["loud", "made", "asked"]
    del before[str(out / "artifacts")]  # it has new entries
    assert {path: stamp for path, stamp in stamps(out).items() if path in before} == before
    assert (out / "loud").resolve() == second["loud"].path.resolve()
    back = Heard()
    assert run(load(recipe_file), out, back)["loud"].path == first["loud"].path  # the old ones are still there
    assert back.ran == []
    assert (out / "loud").resolve() == first["loud"].path.resolve()


def test_why_a_stage_will_run_is_said_in_the_recipes_terms(recipe_file, tmp_path):
    out = tmp_path / "out"
    run(load(recipe_file), out)

    def why(*overrides):
        plan = make_plan(load(recipe_file, *overrides), Workspace(out), Hashes(out / "hashes.json"))
        return {step.name: step.why for step in plan.to_run}

    assert why() == {}
    assert why("loud.mark=x") == {"loud": "mark changed", "made": "reads loud", "asked": "reads made, loud"}
    assert why("seed=9")["second"] == "the seed changed"
    assert why("scribe.name=scribe-9") == {"asked": "what models names changed"}


def test_unsealed_leftovers_are_removed_at_the_start(recipe_file, tmp_path):
    out = tmp_path / "out"
    run(load(recipe_file), out)
    clean = tree(out)
    (out / "work" / "loud" / "draft").mkdir(parents=True)
    (out / "work" / "loud" / "draft" / "rows.jsonl").write_text("half")
    (out / ".times.json.123").write_text("half")
    run(load(recipe_file), out)
    assert list((out / "work").iterdir()) == []
    assert not (out / ".times.json.123").exists()
    assert tree(out) == clean


def test_a_damaged_seal_is_noticed(recipe_file, tmp_path):
    out = tmp_path / "out"
    sealed = run(load(recipe_file), out)
    rows = sealed["first"].path / "rows.jsonl"
    rows.write_text(rows.read_text() + "{}\n")
    with pytest.raises(StorageError, match=r"rows\.jsonl: this sealed file .* another size"):
        run(load(recipe_file), out)
    rows.write_bytes(b"")
    rows.unlink()
    with pytest.raises(StorageError, match="missing"):
        run(load(recipe_file), out)


def test_a_garbled_manifest_is_one_line(recipe_file, tmp_path):
    out = tmp_path / "out"
    sealed = run(load(recipe_file), out)
    (sealed["first"].path / "manifest.json").write_text('{"files": ')
    with pytest.raises(StorageError, match=r"manifest\.json"):
        run(load(recipe_file), out)


def test_a_childs_own_error_comes_back_as_itself(recipe_file, tmp_path):
    with pytest.raises(ModelError) as caught:
        run(load(recipe_file, "made.fail=known"), tmp_path / "out")
    assert (caught.value.where, caught.value.what, caught.value.remedy) == ("the anvil", "it is cold", "Heat it")
    assert not (tmp_path / "out" / "made").exists()
    assert list((tmp_path / "out" / "work").iterdir()) == []


def test_a_full_disk_in_a_child_is_a_storage_error(recipe_file, tmp_path):
    with pytest.raises(StorageError, match="the disk is full"):
        run(load(recipe_file, "made.fail=full"), tmp_path / "out")


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("crash", "exit code 1 before the stage was done; its last line: ZeroDivisionError: hammer by nothing"),
        ("killed", "by SIGKILL, perhaps"),
    ],
)
def test_a_childs_crash_names_its_log_and_the_last_line(recipe_file, tmp_path, fail, message):
    with pytest.raises(PotstillError) as caught:
        run(load(recipe_file, f"made.fail={fail}"), tmp_path / "out")
    assert caught.value.where.endswith("logs/made.log")
    assert message in caught.value.what


def test_after_a_failure_the_run_goes_on_where_it_stopped(recipe_file, tmp_path):
    out, heard = tmp_path / "out", Heard()
    with pytest.raises(ModelError):
        run(load(recipe_file, "other.fail=known"), out)
    run(load(recipe_file), out, heard)
    assert heard.ran == ["other", "asked"]


def test_an_unset_key_stops_the_run_before_anything_runs(recipe_file, tmp_path, monkeypatch):
    monkeypatch.delenv("SCRIBE_KEY", raising=False)
    recipe = load(recipe_file, "scribe.key_env=SCRIBE_KEY")
    with pytest.raises(RecipeError, match=r"\$SCRIBE_KEY, which is not set"):
        run(recipe, tmp_path / "out")
    assert not list((tmp_path / "out" / "artifacts").iterdir())
    monkeypatch.setenv("SCRIBE_KEY", "s")
    run(recipe, tmp_path / "out")
    monkeypatch.delenv("SCRIBE_KEY")
    run(recipe, tmp_path / "out")  # nothing has to run, so no key is needed


def test_a_server_starts_when_a_stage_needs_it_and_ends_with_the_run(tmp_path, monkeypatch):
    started = []

    class Process:
        base_url = "http://127.0.0.1:9/v1"

        def __init__(self, spec, log):
            self.spec = spec

        def __enter__(self):
            started.append(self.spec.seed)
            return self

        def __exit__(self, *error):
            started.append("ended")

    monkeypatch.setattr("potstill.miniature.server.MiniatureProcess", Process)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: f\nservers: {world: {kind: miniature, seed: 5}}\nmodels: {m: {endpoint: world, name: scribe}}\n"
        "stages:\n  first: {kind: words}\n  asked: {kind: asks, models: [m]}\n  made: {kind: smith, data: first}\n"
    )
    run(load(recipe), tmp_path / "out", until="made")
    assert started == []
    run(load(recipe), tmp_path / "out")
    assert started == [5, "ended"]
    run(load(recipe), tmp_path / "out")
    assert started == [5, "ended"]
    assert keys(recipe) != keys(recipe, "world.entities=60")


# Processes: the command line with the fake stages, in a process of its own.


def command(*arguments):
    return [sys.executable, "-m", "fakes", *map(str, arguments)]


def start(*arguments, **options):
    return subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(recipe_file, tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    slow = ("loud.seconds=0.2", "made.seconds=0.3")
    began = time.monotonic()
    assert subprocess.run(command("run", recipe_file, *slow, "--out", calm), capture_output=True).returncode == 0
    seconds, chance = time.monotonic() - began, random.Random(0)
    for _ in range(5):
        process = start("run", recipe_file, *slow, "--out", killed)
        time.sleep(chance.uniform(0.1, 0.6) * seconds)
        process.kill()  # the parent alone: its children have to notice
        process.communicate()
    done = subprocess.run(command("run", recipe_file, *slow, "--out", killed), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tree(killed) == tree(calm)
    assert list((killed / "work").iterdir()) == []


def test_when_the_parent_is_killed_its_child_ends_and_keeps_the_folder_until_then(recipe_file, tmp_path):
    out = tmp_path / "out"
    process = start("run", recipe_file, "made.seconds=60", "--out", out)
    wait_for((out / "heartbeat").exists)
    child = int((out / "heartbeat").read_text() or 0)
    process.kill()
    process.communicate()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text())
    wait_for(lambda: Workspace(out).holder() == 0)
    assert find(out / "made") is None


def test_two_runs_at_once_the_second_says_who_holds_the_folder(recipe_file, tmp_path):
    out = tmp_path / "out"
    first = start("run", recipe_file, "made.seconds=60", "--out", out)
    try:
        wait_for((out / "heartbeat").exists)
        second = subprocess.run(command("run", recipe_file, "--out", out), capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"another run (process {first.pid}) works in this folder" in second.stderr
        assert Workspace(out).holder() == first.pid
        with pytest.raises(BusyError), Workspace(out).hold():
            pass
    finally:
        first.kill()
        first.communicate()


def test_where_a_killed_runs_child_still_holds_the_folder_that_child_is_named(recipe_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process = start("run", recipe_file, "made.seconds=60", "--out", out)
    wait_for((out / "heartbeat").exists)
    child = int((out / "lock").read_text().split()[1])
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{child}/stat").read_text().split()[2] == "T")
    try:
        process.kill()
        process.communicate()
        monkeypatch.setattr("potstill.runs.workspace.ORPHAN_SECONDS", 0.2)
        with pytest.raises(BusyError, match=rf"another run \(process {child}\) works"), Workspace(out).hold():
            pass
        assert Workspace(out).holder() == child
    finally:
        os.kill(child, signal.SIGCONT)
    wait_for(lambda: Workspace(out).holder() == 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_the_child_and_prints_the_command_that_resumes(recipe_file, tmp_path, number, code):
    out = tmp_path / "out put"
    process = start("run", recipe_file, "made.seconds=60", "--out", out, start_new_session=True)
    wait_for((out / "heartbeat").exists)
    child = int((out / "heartbeat").read_text() or 0)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"potstill run {recipe_file} made.seconds=60 --out '{out}'" in stderr
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{child}").exists()
    with (out / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert find((out / "loud").resolve()) is not None
