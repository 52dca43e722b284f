"""The Dockerfile and the job for Slurm: what can be checked of them without a daemon or a cluster."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from potstill import cli
from potstill.errors import EXIT_CODES

ROOT = Path(__file__).parents[2]
KNOWN = ["FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT", "CMD", "HEALTHCHECK"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, lines that go on joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_every_instruction_is_one_and_shell_code_parses():
    assert {word for word, _ in instructions()} <= set(KNOWN)
    for word, rest in instructions():
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)


def test_it_copies_only_what_is_there_and_let_in():
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        name for word, rest in instructions() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    ]
    assert set(copied) == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_it_ends_as_nobody_special_under_an_init_without_a_secret():
    found = instructions()
    last = max(place for place, (word, _) in enumerate(found) if word == "FROM")
    final = found[last:]
    assert ("USER", "potstill") in final
    assert final.index(("USER", "potstill")) > max(place for place, (word, _) in enumerate(final) if word == "RUN")
    assert ("HEALTHCHECK", "NONE") in final
    assert ("ENTRYPOINT", '["tini", "--", "potstill"]') in final
    text = (ROOT / "Dockerfile").read_text() + (ROOT / ".dockerignore").read_text()
    assert not re.search(r"(?i)(api_?key|token|password|secret)\s*=", text)
    assert ".env" not in text


def test_its_pip_lines_install_what_the_project_is():
    """The same words as in a fresh environment: constraints that exist, an extra that exists."""
    project = (ROOT / "pyproject.toml").read_text()
    (installs,) = [rest for word, rest in instructions() if word == "RUN" and '".[$EXTRAS]"' in rest]
    words = shlex.split(installs)
    assert words[:2] == ["pip", "install"]
    assert (ROOT / words[words.index("-c") + 1]).is_file()
    (extra,) = [rest.partition("=")[2] for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRAS")]
    assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_the_job_for_slurm_is_shell_and_goes_by_the_documented_code():
    page = (ROOT / "docs" / "command-line.md").read_text()
    (job,) = re.findall(r"^```bash\n(#!/bin/bash.*?)^```", page, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n", "-c", job], check=True)
    assert re.search(r"^#SBATCH --signal=USR1@\d+$", job, re.MULTILINE)
    (code,) = re.findall(r'"\$code" -eq (\d+)', job)
    assert "SIGUSR1" in EXIT_CODES[int(code)]
    (line,) = [line for line in job.splitlines() if line.startswith("srun")]
    words = shlex.split(line)
    assert cli._arguments(words[words.index("potstill") + 1 :]).log == "text"


@pytest.mark.parametrize("example", ["docker run --rm --user", "docker build -t potstill"])
def test_the_page_shows_how(example):
    assert example in (ROOT / "docs" / "command-line.md").read_text()
