"""Folders that cannot be written and disks that are full: one line, exit code 2, nothing that looks finished."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from potstill.artifact import find
from potstill.errors import BusyError, PotstillError, RecipeError, StorageError
from potstill.errors import __doc__ as drawing


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(fakes.RECIPE)


def run(out, *overrides):
    command = [sys.executable, "-m", "fakes", "run", "tiny.yaml", *overrides, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def mistake(done):
    """The one line of a run that ended as it should where the user has to mend something."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def mounted(path, options):
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    return path


@pytest.fixture
def disk(tmp_path):
    """Makes small disks, and takes them away again."""
    made = []

    def make(name, options):
        made.append(mounted(tmp_path / name, options))
        return made[-1]

    yield make
    for path in made:
        subprocess.run(["umount", str(path)], check=True)


def test_a_folder_that_cannot_be_written(disk, tmp_path):
    if os.geteuid():
        out = tmp_path / "shut"
        out.mkdir()
        out.chmod(0o555)
    else:
        out = disk("shut", "ro")
    assert "this folder cannot be written. Choose another with --out" in mistake(run(out))
    assert "this folder cannot be written. Choose another with --out" in mistake(run(out / "deeper" / "still"))


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file: a file stands where a folder was expected. Move it" in mistake(run(tmp_path / "file"))
    assert "a file stands where a folder was expected. Move it" in mistake(run(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_where_a_stages_link_goes(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").write_text("mine")
    assert "something stands where the link to this stage goes. Move it away" in mistake(run(tmp_path / "out"))
    assert (tmp_path / "out" / "first").read_text() == "mine"


@pytest.mark.parametrize("kilobytes", [4, 20, 44, 72])
def test_a_disk_that_fills_up_at_any_point(disk, tmp_path, kilobytes):
    """Whatever is being written when the disk is full: one line, and what is sealed is whole."""
    small = disk("small", f"size={kilobytes}k")
    done = run(small / "out", "first.count=120", "second.count=60")
    assert "the disk is full. Free some space and run again; what is sealed stays" in mistake(done)
    artifacts = small / "out" / "artifacts"
    for folder in artifacts.iterdir() if artifacts.is_dir() else ():
        artifact = find(folder)
        assert artifact is not None
        assert artifact.damaged() is None
    subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
    again = run(small / "out", "first.count=120", "second.count=60")
    assert again.returncode == 0, again.stderr
    assert json.loads((small / "out" / "run.json").read_text())["recipe"] == "tiny"


def test_every_error_stands_in_the_drawing_and_is_a_standard_one_too():
    from potstill import errors

    tree = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, PotstillError)]
    assert all(error.__name__ in drawing for error in tree)
    assert issubclass(StorageError, OSError)
    assert issubclass(BusyError, OSError)


def test_an_error_is_one_line_whatever_it_holds():
    error = StorageError("a\nb", "it\n  broke.", "mend it.")
    assert str(error) == "a b: it broke. mend it."


def test_dots_at_the_end_of_a_remedy_stay():
    assert str(RecipeError("here", "wrong.", "Choose of a, b, ...")) == "here: wrong. Choose of a, b, ..."
