"""The documented commands on the demo's run, and the README's Python on its models, as a reader would type them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reduced

from conftest import Calm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ON_A_RUN = {"status", "show", "journal", "chat", "score", "compare"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[str]:
    """Those that ask something of the demo's run."""
    for page in PAGES:
        for line in "\n".join(blocks(page, "sh")).splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["potstill"] and words[1] in ON_A_RUN and on_the_demo(words[2:]):
                yield shlex.join(words)


def on_the_demo(words: list[str]) -> bool:
    """The demo's folder, or its name; other runs are other recipes'."""
    return any(re.fullmatch(r"(runs/)?miniature(:\w+)?", word) for word in words[:2])


@pytest.fixture(scope="module")
def demo(calm: Calm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/miniature` is the reduced demo."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(calm.folder, home / "runs" / "miniature", symlinks=True)
    return home


def test_there_are_such_commands() -> None:
    verbs = {shlex.split(command)[1] for command in commands()}
    assert verbs >= {"status", "show", "journal", "chat", "score"}


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_the_docs_runs(command: str, demo: Path) -> None:
    words = shlex.split(command)
    if "prune" in words:
        shutil.copytree(demo, own := demo.parent / f"{demo.name}-pruned", symlinks=True)
        demo = own
    if "--key" in words:  # the page's is of another run
        words[words.index("--key") + 1] = first_key(demo)
    done = subprocess.run(
        [sys.executable, "-m", "potstill.cli", *words[1:]],
        cwd=demo,
        input="Hello!\n",
        capture_output=True,
        text=True,
        env={**reduced.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "--to" in words
    assert "Traceback" not in done.stderr


def first_key(demo: Path) -> str:
    listed = subprocess.run(
        [sys.executable, "-m", "potstill.cli", "journal", "miniature", "export"],
        cwd=demo, capture_output=True, text=True, env=reduced.environment(), check=True,
    )  # fmt: skip
    found = re.search(r'"key": "(\w{8})', listed.stdout)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("snippet", blocks(ROOT / "README.md", "python"))
def test_the_readmes_python_runs_on_the_demos_model(snippet: str, demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=demo,
        capture_output=True,
        text=True,
        env=reduced.environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
