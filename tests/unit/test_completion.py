"""Completion, in real shells: what they offer behind what is typed."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from potstill.cli import main
from potstill.recipe import shipped

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(autouse=True)
def _a_run(monkeypatch, tmp_path):
    fakes.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(fakes.RECIPE)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert main(["run", "tiny.yaml", "--quiet"]) == 0


def offered(line: str) -> list[str]:
    """What `potstill` answers a shell that asks; argcomplete writes it to the descriptor 8."""
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
        "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": "offered",
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "potstill.cli"], env=environment, capture_output=True, check=True)
    return [word.rstrip() for word in Path("offered").read_text().split("\n") if word.strip()]


def test_verbs_options_recipes_runs_and_stages_are_offered():
    assert {"run", "status", "completion"} <= set(offered("potstill "))
    assert offered("potstill stat") == ["status"]
    assert set(offered("potstill run --")) >= {"--until", "--launch", "--log", "--quiet", "--out"}
    assert set(offered("potstill run ")) >= {*shipped(), "tiny.yaml"}
    assert set(offered("potstill status ")) >= {"tiny", "runs/tiny"}
    stages = {"first", "second", "loud", "made", "other", "asked"}
    assert set(offered("potstill show tiny ")) >= stages
    assert set(offered("potstill run tiny.yaml --until ")) == stages
    assert set(offered("potstill journal runs/tiny --stage ")) == stages
    assert offered("potstill run x --log ") == ["text", "json"]


def test_it_answers_at_once_and_imports_nothing_heavy():
    program = (
        "import os, sys, time; began = time.perf_counter(); sys.argv = ['potstill']\n"
        "import potstill.cli\ntry: potstill.cli.main()\nfinally: pass\n"
    )
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": "potstill show tiny ", "COMP_POINT": "19",
        "_ARGCOMPLETE_STDOUT_FILENAME": "offered",
    }  # fmt: skip
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], env=environment, capture_output=True, text=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip() for line in imports.splitlines()}
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "pydantic", "yaml", "rich"})
    bare = min(seconds_of_work(lambda: subprocess.run([sys.executable, "-c", ""], check=True)) for _ in range(5))
    took = min(seconds_of_work(lambda: offered("potstill show tiny ")) for _ in range(5))
    assert took - bare < 0.1, "beside the start of Python itself"


def seconds_of_work(call) -> float:
    """What a child computes, on however busy a machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


BASH = """\
eval "$(potstill completion bash)"
COMP_WORDS=(potstill show tiny lo); COMP_CWORD=3; COMP_LINE='potstill show tiny lo'; COMP_POINT=21; COMP_TYPE=9
_python_argcomplete potstill lo tiny
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """\
autoload -Uz compinit && compinit -u -d ./zcompdump
eval "$(potstill completion zsh)"
whence -w _python_argcomplete
print -l ${_comps[potstill]}
"""
FISH = """\
potstill completion fish | source
complete -C 'potstill show tiny lo'
"""
PROGRAMS = {"bash": (["bash", "--norc", "-c", BASH], "loud"), "fish": (["fish", "--no-config", "-c", FISH], "loud")}
PROGRAMS["zsh"] = (["zsh", "-f", "-c", ZSH], "_python_argcomplete")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_takes_the_script(shell, monkeypatch, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    if shutil.which("potstill") is None:
        pytest.skip("potstill is not installed beside this Python")
    monkeypatch.setenv("HOME", str(tmp_path))
    words, expected = PROGRAMS[shell]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert expected in done.stdout.split(), done.stderr


def test_only_shells_that_are_known_get_a_script(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["completion", "csh"])
    assert caught.value.code == 2
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert "potstill" in capsys.readouterr().out
