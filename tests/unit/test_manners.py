"""How the command line behaves where nobody watches: exit codes, signals, terminals, containers, colour, no calls."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import fakes
import pytest

from potstill import cli
from potstill.artifact import find
from potstill.environment import NO_TELEMETRY, prepare
from potstill.errors import EXIT_CODES
from potstill.runs.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fake_stages(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(fakes.RECIPE)


def command(*arguments):
    return [sys.executable, "-m", "fakes", *map(str, arguments)]


def start(*arguments, **options):
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), **{**given, **options})


def wait_for(condition, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def heartbeat(out="runs/tiny"):
    file = Path(out) / "heartbeat"
    wait_for(lambda: file.exists() and file.read_text())
    return int(file.read_text())


# Exit codes.


def test_exit_codes_stand_in_the_help_and_in_the_documentation():
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)}
    assert rows == EXIT_CODES
    shown = cli._parser().format_help()
    assert all(re.search(rf"^  {code} +{re.escape(text)}$", shown, re.MULTILINE) for code, text in EXIT_CODES.items())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("full", "the disk is full. Free some space and run again"),
        ("killed", "was ended by SIGKILL, perhaps because memory ran out"),
        ("crash", "with exit code 1"),
        ("known", "the anvil: it is cold. Heat it."),
    ],
)
def test_what_a_full_disk_and_a_child_that_is_killed_end_with(how, says):
    done = subprocess.run(command("run", "tiny.yaml", f"made.fail={how}"), capture_output=True, text=True)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert find(Path("runs/tiny/loud").resolve()) is not None


def test_what_an_endpoint_that_is_gone_ends_with():
    Path("asks.yaml").write_text(
        "name: asks\nmodels:\n  a: {endpoint: 'http://127.0.0.1:9/v1', name: a}\n"
        "  b: {endpoint: 'http://127.0.0.1:9/v1', name: b}\n"
        "stages: {answers: {kind: sample, models: [a, b], prompts: prompts.jsonl, per_prompt: 2}}\n"
    )
    Path("prompts.jsonl").write_text('{"prompt": "Name a river."}\n')
    done = subprocess.run(command("run", "asks.yaml"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1


# Signals.


def test_before_a_time_limit_every_process_gets_sigusr1_and_the_run_alone_ends_by_it():
    """As Slurm sends it: to the run, to its training process, and to everything else that there is."""
    process = start("run", "tiny.yaml", "made.seconds=60", start_new_session=True)
    child = heartbeat()
    os.kill(child, signal.SIGUSR1)
    time.sleep(0.3)
    assert process.poll() is None, "the training process goes on"
    os.killpg(process.pid, signal.SIGUSR1)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "Go on with:\n  potstill run tiny.yaml made.seconds=60" in stderr
    assert not Path(f"/proc/{child}").exists()
    again = subprocess.run(command("run", "tiny.yaml"), capture_output=True, text=True)
    assert again.returncode == 0
    assert "loud: sealed before" in again.stdout


def test_a_run_goes_on_when_its_terminal_goes_away():
    """A pseudo-terminal is closed while the run works: the kernel sends SIGHUP, and every write fails."""
    parent, child = pty.openpty()
    process = start(
        "run", "tiny.yaml", "made.seconds=1.5", stdin=child, stdout=child, stderr=child, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its terminal, so that it gets SIGHUP
    )  # fmt: skip
    os.close(child)
    heartbeat()
    os.close(parent)
    assert process.wait(timeout=300) == 0
    assert find(Path("runs/tiny/asked").resolve()) is not None
    events = [json.loads(line)["event"] for line in Path("runs/tiny/logs/run.jsonl").read_text().splitlines()]
    assert events[-1] == "finished", "and it is told to the end"


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_a_pane_of_tmux_may_change_its_size():
    sessions = ["tmux", "-L", f"potstill-{os.getpid()}"]
    line = f"{' '.join(command('run', 'tiny.yaml', 'loud.seconds=2'))}; echo ended $? > ended"
    subprocess.run([*sessions, "new-session", "-d", "-x", "120", "-y", "30", line], check=True)
    try:
        for width in (60, 140, 30):
            time.sleep(0.5)
            with contextlib.suppress(subprocess.CalledProcessError):
                subprocess.run([*sessions, "resize-window", "-x", str(width), "-y", "20"], check=True)
        wait_for(Path("ended").exists)
        wait_for(Path("ended").read_text)
    finally:
        subprocess.run([*sessions, "kill-server"], check=False, capture_output=True)
    assert Path("ended").read_text() == "ended 0\n"


def _namespaces():
    probe = ["unshare", "--pid", "--fork", "--kill-child", "true"]
    return shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not _namespaces(), reason="no process namespaces can be made here")
def test_the_first_process_of_a_container_hears_sigterm():
    """The kernel keeps from it every signal that it does not handle."""
    words = ["unshare", "--pid", "--fork", "--kill-child", *command("run", "tiny.yaml", "made.seconds=60")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert heartbeat() < 100, "it counts its own processes"
    (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(inner), signal.SIGTERM)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "Go on with:" in stderr


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes anybody")
def test_any_user_id_without_a_home_runs():
    """As containers are started: a user id that nobody knows, no HOME, a folder of its own and nothing else."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o777)
        shutil.copy("tiny.yaml", own)
        here = {"cwd": own, "env": environment, "capture_output": True, "text": True}
        child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import fakes'], check=True)"
        if subprocess.run([*user, sys.executable, "-c", child], **here).returncode:
            pytest.skip("this Python, or the tests' own folder, may not be read by others")
        done = subprocess.run([*user, *command("run", "tiny.yaml")], **here)
    assert (done.returncode, done.stderr) == (0, "")


# Colour and width.


def shown_on_a_terminal(*arguments, **environment):
    parent, child = pty.openpty()
    process = start(*arguments, stdin=child, stdout=child, stderr=child, env={**os.environ, **environment})
    os.close(child)
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.read(parent, 65536):
            text += piece
    os.close(parent)
    assert process.wait() == 0
    return text.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")


def test_there_is_colour_on_a_terminal_only_and_who_wants_none_is_obeyed():
    terminal = {"TERM": "xterm-256color", "COLUMNS": "100"}
    cli.main(["run", "tiny.yaml", "--quiet"])
    assert COLOUR.search(shown_on_a_terminal("status", "tiny", **terminal))
    for name, value in (("NO_COLOR", "1"), ("CLICOLOR", "0")):
        assert not COLOUR.search(shown_on_a_terminal("status", "tiny", **terminal, **{name: value})), name
    dumb = shown_on_a_terminal("run", "tiny.yaml", "made.heat=3", TERM="dumb", COLUMNS="100")
    assert "\x1b" not in dumb
    assert "[4/6] made: starts" in dumb, "calm lines"


def test_in_a_pipe_there_is_colour_only_for_who_asks_for_it():
    cli.main(["run", "tiny.yaml", "--quiet"])

    def piped(*arguments, **environment):
        whole = {**os.environ, "TERM": "xterm-256color", **environment}
        return subprocess.run(command(*arguments), capture_output=True, text=True, env=whole, check=True).stdout

    for verb in (["status", "tiny"], ["plan", "tiny.yaml"], ["show", "tiny", "loud"], ["run", "tiny.yaml"]):
        assert "\x1b" not in piped(*verb), verb
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        assert COLOUR.search(piped("status", "tiny", **{name: "1"})), name
        assert "\x1b[?25l" not in piped("run", "tiny.yaml", "made.heat=4", **{name: "1"}), "nothing moves in a pipe"
        assert not COLOUR.search(piped("status", "tiny", NO_COLOR="1", **{name: "1"}))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_are_as_wide_as_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    cli.main(["run", "tiny.yaml", "--quiet"])
    capsys.readouterr()
    for arguments in (["plan", "tiny.yaml", "loud.mark=x"], ["status", "tiny"], ["show", "tiny", "loud"]):
        cli.main(arguments)
        table = capsys.readouterr().out.split("\n\n")[0]
        assert max(map(len, table.splitlines())) <= width, arguments
        assert "…" not in table, arguments


# No telemetry.


def test_what_libraries_would_tell_of_their_use_is_off_unless_the_user_says_otherwise(monkeypatch):
    for name in NO_TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    prepare()
    assert {name: os.environ[name] for name in NO_TELEMETRY} == {**NO_TELEMETRY, "RAY_USAGE_STATS_ENABLED": "1"}


GUARD = """\
import os, sys

def listen(event, arguments):
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "unix"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    kind = "own" if host in ("127.0.0.1", "::1", "localhost", "unix", None, b"127.0.0.1") else "away"
    with open(os.environ["GUARD"], "a") as file:
        file.write(f"{kind} {event} {host}\\n")
    if kind == "away":
        raise ConnectionRefusedError(f"a connection to {host}")

sys.addaudithook(listen)
"""
TALKS = """\
name: talks
servers: {world: {kind: miniature}}
models:
  a: {endpoint: world, name: scribe}
  b: {endpoint: world, name: sage}
stages:
  answers: {kind: sample, models: [a, b], prompts: prompts.jsonl, per_prompt: 2}
"""


def guarded(tmp_path, words):
    """Run a command in whose processes every connection is noted, and refused where it leads away."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    noted = tmp_path / "connections"
    paths = os.pathsep.join([str(tmp_path / "guard"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "GUARD": str(noted)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
    return done, noted.read_text().splitlines() if noted.exists() else []


def test_the_guard_hears_a_connection_of_a_child(tmp_path):
    asks = "import socket; socket.getaddrinfo('a.example', 1)"
    call = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {asks!r}])"
    _, noted = guarded(tmp_path, [sys.executable, "-c", call])
    assert noted == ["away socket.getaddrinfo a.example"]


def test_a_run_talks_to_nobody_but_the_endpoints_of_its_recipe(tmp_path):
    Path("talks.yaml").write_text(TALKS)
    Path("prompts.jsonl").write_text('{"prompt": "Who are you?"}\n')
    done, noted = guarded(tmp_path, command("run", "talks.yaml"))
    assert done.returncode == 0, done.stderr
    assert noted, "it talked to the world's server"
    assert [line for line in noted if line.startswith("away")] == []


@pytest.mark.slow
def test_training_and_evaluating_talk_to_nobody(tmp_path):
    sys.path.insert(0, str(ROOT / "tests" / "end_to_end"))
    import reduced

    done, noted = guarded(tmp_path, reduced.command(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert [line for line in noted if line.startswith("away")] == []


def test_nobody_holds_the_folder_when_all_is_done():
    cli.main(["run", "tiny.yaml", "--quiet"])
    assert Workspace(Path("runs/tiny")).holder() == 0
