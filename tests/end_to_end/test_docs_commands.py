"""The documented commands and Python, page by page, as a reader would type them beside the demo's run."""

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
LATER = {
    "run": "minutes: the miniature's tests run it",
    "serve": "until it is stopped: its own tests start and stop it",
    "view": "until it is stopped: its own tests start and stop it",
    "push": "the Hub: its own tests push to one of their making",
}
"""Verbs that no page's reader waits for here, and why."""
ELSEWHERE = re.compile(
    # Another process, a server, a person, a LoRA; and files of the reader's own.
    r"--follow|--trial|--endpoint|--arena|--yes|--format adapter|push runs/"
    r"|config(_full)?\.yaml|model_judgment|results/my-model|runs/(mine|before|miniature-skills)|=http"
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECIPE = "\n".join(re.findall(r"^```yaml\n(name: my-assistant.*?)^```", README, re.MULTILINE | re.DOTALL))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


WRITES = {"export", "push"}
"""Typed on every page that has them; a page's other commands only where no page before has the same."""


def commands(page: Path) -> Iterator[list[str]]:
    """Those of a page that end by themselves, with what is there."""
    for line in "\n".join(blocks(page, "sh")).replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        offline_push = words[1:3] == ["push", "out/dpo"]
        if words[:1] == ["potstill"] and not ELSEWHERE.search(line) and (words[1] not in LATER or offline_push):
            yield words


def typed_once() -> dict[Path, list[list[str]]]:
    """By page. A plan for a device is one rehearsal, which takes a minute here: the first page with one types it."""
    found: dict[Path, list[list[str]]] = {}
    before: set[str] = set()
    for page in PAGES:
        for words in commands(page):
            name = "--hardware" if "--hardware" in words else shlex.join(words)
            if name not in before or words[1] in WRITES:
                found.setdefault(page, []).append(words)
            before.add(name)
    return found


TYPED = typed_once()


@pytest.fixture(scope="module")
def demo(calm: Calm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `runs/miniature` is the reduced demo, and `my-recipe.yaml` that of the README."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(calm.folder, home / "runs" / "miniature", symlinks=True)
    (home / "my-recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name in ("seeds.jsonl", "questions.jsonl"):
        (home / name).write_text('{"prompt": "Name a river."}\n', encoding="utf-8")
    return home


def typed(demo: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "potstill.cli", *words],
        cwd=demo,
        input="Hello!\n",
        capture_output=True,
        text=True,
        env={**reduced.environment(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        timeout=300,
        check=False,
    )


def test_most_verbs_are_typed_here() -> None:
    here = {words[1] for page in PAGES for words in commands(page)}
    assert here | set(LATER) | {"convert"} == set(re.findall(r"^\| `potstill (\w+)", README, re.MULTILINE))
    assert "push" in here


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_what_a_page_types_works(page: Path, demo: Path) -> None:
    """One after another, as they stand: what one wrote, the next may read. Where a page writes is its own."""
    for made in ("out", "my-model"):
        shutil.rmtree(demo / made, ignore_errors=True)
    for words in TYPED[page]:
        if "--key" in words:  # the page's is of another run
            words[words.index("--key") + 1] = a_key(demo)
        done = typed(demo, *words[1:])
        expected = {0, 2} if words[1] == "doctor" else {0}  # 2: the recipe's servers and weights are not here
        assert done.returncode in expected, f"{shlex.join(words)}: {done.stderr}"
        assert done.stdout.strip() or "--to" in words, shlex.join(words)
        assert "Traceback" not in done.stderr, done.stderr


def a_key(demo: Path) -> str:
    found = re.search(r'"key": "(\w{8})', typed(demo, "journal", "miniature", "export").stdout)
    assert found is not None
    return found[1]


ON_THE_DEMO = [
    pytest.param(snippet, id=page.stem)
    for page in (ROOT / "README.md", ROOT / "docs" / "library.md")
    for snippet in blocks(page, "python")
    if "runs/miniature" in snippet and "potstill.run(" not in snippet
]


@pytest.mark.parametrize("snippet", ON_THE_DEMO)
def test_python_of_the_docs_runs_on_the_demos_run(snippet: str, demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=demo,
        capture_output=True,
        text=True,
        env=reduced.environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_is_python_of_both_pages() -> None:
    assert len(ON_THE_DEMO) >= 3
