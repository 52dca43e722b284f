"""What is broken around a run: its folder, its notes, its manifests, the terminal. One line and exit code 2, or the run
goes its way; and after the cause is mended the same command goes on."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fakes
import pytest

from potstill.cli import main

RECIPE = """\
name: tiny
stages:
  loud: {kind: shout, data: rows.jsonl}
  made: {kind: smith, data: loud}
"""
POTSTILL = f"{sys.executable} -m fakes"
READ_BY_VERBS = (["status", "runs/tiny"], ["show", "runs/tiny", "loud"], ["chat", "runs/tiny"])

ECHO = """
import sys, types, fakes
class Echo:
    context = 1000
    def __init__(self, model): pass
    def length(self, request): return 1
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def write(self, request): yield request.messages[-1].content.encode('utf-8').decode(), 1
sys.modules['potstill.teachers.local'] = types.SimpleNamespace(LocalTeacher=Echo)
from potstill.cli import main
sys.exit(main(['chat', 'runs/tiny']))
"""
CHAT = f"{sys.executable} -c {shlex.quote(ECHO)}"


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("tiny.yaml").write_text(RECIPE)
    Path("rows.jsonl").write_text('{"id": "1", "text": "café"}\n')


@pytest.fixture
def potstill(capsys):
    """Run one command here; its exit code, output and errors."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def shell(command, **environment):
    """Run one line of bash in which $P is potstill; its exit code, output and errors."""
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, env={**os.environ, "P": POTSTILL, **environment}
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def one_line(result):
    """What a command said that ended as it should where the user has to mend something."""
    code, _, err = result
    assert (code, err.count("\n")) == (2, 1), err
    assert err.endswith(".\n")
    return err.rstrip("\n")


# ---- notes and caches

GARBAGE = {
    "empty": b"",
    "truncated": b'{"recipe": "tiny", ',
    "a list": b"[]",
    "binary": b"\x9c\x00\xff",
    "of another shape": b'{"rows.jsonl": 3, "stages": {"loud": {}}}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_what_is_only_remembered_is_written_anew(potstill, garbage):
    assert potstill("run", "tiny.yaml")[0] == 0
    notes = [Path("runs/tiny", name) for name in ("run.json", "hashes.json", "times.json")]
    whole = [json.loads(note.read_text()) for note in notes]
    for note in notes:
        note.write_bytes(garbage)
    assert potstill("plan", "tiny.yaml")[::2] == (0, "")
    for words in READ_BY_VERBS:
        assert one_line(potstill(*words)) == (
            "runs/tiny/run.json: this is not a run's description as potstill writes them. "
            "Run the recipe again, which writes it anew; what is sealed stays."
        )
    assert potstill("run", "tiny.yaml")[::2] == (0, "")
    assert [json.loads(note.read_text()) for note in notes[:2]] == whole[:2]
    assert "All 2 stages are sealed" in potstill("status", "runs/tiny")[1]
    assert potstill("run", "tiny.yaml", "loud.mark=x")[::2] == (0, "")
    assert {took["stage"] for took in json.loads(notes[2].read_text()).values()} == {"loud", "made"}


@pytest.mark.parametrize("name", ["run.json", "hashes.json", "times.json", "lock"])
def test_a_folder_where_a_file_should_be(potstill, name):
    Path("runs/tiny", name).mkdir(parents=True)
    said = one_line(potstill("run", "tiny.yaml", "--until", "loud"))
    assert said == f"runs/tiny/{name}: a folder stands where a file was expected. Move it or choose another --out."
    Path("runs/tiny", name).rmdir()
    assert potstill("run", "tiny.yaml", "--until", "loud")[::2] == (0, "")


# ---- manifests

MANIFESTS = {
    "no facts": lambda whole: {name: value for name, value in whole.items() if name != "facts"},
    "no stage": lambda whole: {name: value for name, value in whole.items() if name != "stage"},
    "nothing but files": lambda whole: {"files": {}},
    "a file without a size": lambda whole: {**whole, "files": {"rows.jsonl": {}}},
    "a file that is a number": lambda whole: {**whole, "files": {"rows.jsonl": 3}},
    "an input without a key": lambda whole: {**whole, "inputs": {"data": [{"name": "rows.jsonl"}]}},
    "a list": lambda whole: [],
}


@pytest.mark.parametrize("broken", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_lacks_what_it_has_to_hold(potstill, broken):
    assert potstill("run", "tiny.yaml", "--until", "loud")[0] == 0
    folder = Path("runs/tiny/loud").resolve()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(broken(json.loads(manifest.read_text()))))
    for words in (["run", "tiny.yaml"], ["plan", "tiny.yaml"], *READ_BY_VERBS[:2]):
        said = one_line(potstill(*words))
        assert "manifest.json: this is not a manifest as potstill writes them. Remove the folder" in said
    shutil.rmtree(folder)
    assert potstill("run", "tiny.yaml", "--until", "loud")[::2] == (0, "")


# ---- folders

LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"$P run tiny.yaml --out {LONG}", f"{LONG}: this name is too long. Choose a shorter one with --out."),
        (f"$P plan tiny.yaml --out {LONG}", "it cannot be read: file name too long. Mend the path"),
        (f"$P status {LONG}", "file name too long. Mend the path"),
        ("$P run tiny.yaml --out /proc/x", "/proc/x: no folder can be made there. Choose another with --out"),
        ("mkdir gone; cd gone; rmdir ../gone; $P run miniature", "runs/miniature: no folder can be made there."),
        ("mkdir $'d\\xff'; cd $'d\\xff'; $P run miniature", "/d\\udcff/runs/miniature: this path is not UTF-8."),
    ],
    ids=["too long", "too long for plan", "too long for status", "in /proc", "removed", "not UTF-8"],
)  # fmt: skip
def test_a_folder_that_cannot_be(command, expected):
    assert expected in one_line(shell(command))


@pytest.mark.parametrize("name", ["artifacts", "work"])
def test_a_run_on_two_file_systems_ends_before_any_work(potstill, name):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == Path().stat().st_dev:
        pytest.skip("there is only one file system")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        Path("runs/tiny").mkdir(parents=True)
        Path("runs/tiny", name).symlink_to(elsewhere)
        said = one_line(potstill("run", "tiny.yaml"))
        assert said.startswith(f"runs/tiny/{name}: it lies on another file system than the run's folder; expected all")
        assert not list(Path("runs/tiny").glob("*/*"))
        Path("runs/tiny", name).unlink()
    assert potstill("run", "tiny.yaml", "--until", "loud")[::2] == (0, "")


@pytest.fixture
def humble():
    """Run one line of bash without root's right to read everything."""
    everything = "-dac_override,-dac_read_search"
    drop = [] if os.geteuid() else ["setpriv", f"--bounding-set={everything}", f"--inh-caps={everything}"]
    if drop and (not shutil.which("setpriv") or subprocess.run([*drop, "true"], capture_output=True).returncode):
        pytest.skip("root reads everything here")
    return lambda command: shell(command.replace("$P", " ".join([*drop, "$P"])))


def test_what_must_not_be_read(potstill, humble):
    assert potstill("run", "tiny.yaml")[0] == 0
    notes = [Path("runs/tiny", name) for name in ("run.json", "hashes.json", "times.json")]
    for note in notes:
        note.chmod(0)
    expected = "runs/tiny/run.json: it cannot be read: permission denied. Mend the path or its permissions."
    for words in READ_BY_VERBS:
        assert one_line(humble(f"$P {' '.join(words)}")) == expected
    assert humble("$P plan tiny.yaml")[::2] == (0, "")
    assert humble("$P run tiny.yaml")[::2] == (0, "")  # writes the notes anew
    assert humble("$P status runs/tiny")[::2] == (0, "")
    manifest = Path("runs/tiny/loud/manifest.json")
    manifest.chmod(0)
    for words in (["run", "tiny.yaml"], ["plan", "tiny.yaml"], *READ_BY_VERBS[:2]):
        assert "manifest.json: it cannot be read: permission denied." in one_line(humble(f"$P {' '.join(words)}"))
    manifest.chmod(0o644)
    Path("runs").chmod(0)
    try:
        for words in (["plan", "tiny.yaml"], *READ_BY_VERBS):
            one_line(humble(f"$P {' '.join(words)}"))
    finally:
        Path("runs").chmod(0o755)


# ---- which run is meant


def test_a_run_is_found_by_its_folder_its_recipe_or_its_name(potstill):
    for verb in (["status"], ["show"], ["chat"]):
        rest = ["loud"] if verb == ["show"] else []
        assert "tiny: no such run, and no shipped recipe of that name" in one_line(potstill(*verb, "tiny", *rest))
        assert "runs/x: no such run, and no shipped" in one_line(potstill(*verb, "runs/x", *rest))
    assert potstill("run", "tiny.yaml", "--until", "loud")[0] == 0
    for name in ("tiny", "tiny.yaml", "runs/tiny"):
        assert "1 of 2 stages are left" in potstill("status", name)[1]
        assert "CAFÉ" in potstill("show", name, "loud")[1]
        assert "no model of this run is sealed yet" in one_line(potstill("chat", name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("folder", "folder: this is not the folder of a run. Name one, or a recipe that has run."),
        ("list.yaml", "list.yaml: this recipe has no name that a run could be found by. Name the run's folder."),
        ("tiny.yaml", "runs/tiny: nothing has run here. Run it first: potstill run tiny.yaml."),
    ],
)
def test_what_is_no_run_is_called_what_it_is(potstill, name, expected):
    Path("folder").mkdir()
    Path("list.yaml").write_text("- 1\n")
    for words in (["status", name], ["show", name, "loud"], ["chat", name]):
        assert one_line(potstill(*words)) == expected


def test_chat_with_a_run_that_makes_no_models(potstill):
    Path("tiny.yaml").write_text(RECIPE[: RECIPE.index("  made")])
    assert potstill("run", "tiny.yaml")[0] == 0
    for words in ([], ["loud"]):
        assert "runs/tiny: this run makes no models. Name a run that does" in one_line(potstill("chat", "tiny", *words))


# ---- standard streams


@pytest.mark.parametrize("reader", ["true", "head -1 >/dev/null"])
def test_a_run_whose_reader_has_gone_goes_on_to_its_end(potstill, reader):
    assert shell(f"$P run tiny.yaml made.seconds=0.5 | {reader}; exit ${{PIPESTATUS[0]}}") == (0, "", "")
    assert "All 2 stages are sealed" in potstill("status", "tiny")[1]


LOOKS = ("plan tiny.yaml", "status runs/tiny", "show runs/tiny loud")


@pytest.mark.parametrize("ending", ["| true; exit ${PIPESTATUS[0]}", ">&-", "<&- >&- 2>&-"])
def test_nobody_has_to_read(potstill, ending):
    assert potstill("run", "tiny.yaml")[0] == 0
    for words in ("run tiny.yaml loud.mark=x", *LOOKS):
        assert shell(f"$P {words} {ending}") == (0, "", "")
    assert len(list(Path("runs/tiny/artifacts").iterdir())) == 4, "the run went on to its end"


def test_a_chat_ends_when_nobody_reads_it_any_more(potstill):
    assert potstill("run", "tiny.yaml")[0] == 0
    assert shell(f"yes | timeout 20 {CHAT} | head -1; exit ${{PIPESTATUS[1]}}") == (0, "y\n", "")


def test_output_that_cannot_be_written_is_not_blamed_on_the_run(potstill):
    expected = "standard output: it cannot be written: no space left on device. Lead it elsewhere and run again."
    assert one_line(shell("$P run tiny.yaml >/dev/full")) == expected
    assert potstill("run", "tiny.yaml")[0] == 0
    for words in LOOKS:
        assert one_line(shell(f"$P {words} >/dev/full")) == expected
    assert shell("$P status folder 2>/dev/full") == (2, "", "")


PLAIN_LOCALES = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONUTF8": "1"},
    {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"},
)


@pytest.mark.parametrize("locale", PLAIN_LOCALES, ids=lambda locale: " ".join(map("=".join, locale.items())))
def test_no_text_is_too_much_for_a_locale(potstill, locale):
    assert potstill("run", "tiny.yaml")[0] == 0
    code, out, err = shell("$P show runs/tiny loud", **locale)
    assert (code, err) == (0, "")
    assert "CAFÉ" in out or "CAF\\xc9" in out
    code, out, err = shell(f"printf 'caf\\xe9\\n' | {CHAT}", **locale)
    assert (code, err) == (0, "")
    assert out.strip() in ("caf�", "caf\\ufffd")
