"""Running code that a model wrote against asserts: in a process of its own, with limits, and only when asked to.

The process is isolated from the user's environment (python -I, no variables, an empty folder that is deleted), may use
so much processor time, memory and disk and no more, is killed at its end or its time limit with all it started, and has
no network where the kernel lets a process give its own up. That holds off accidents. It is no wall against an attacker,
nor proof against code that is out to deceive: code and tests share an interpreter, so code that knows this file can say
that its tests passed. Run code that you would not run yourself in a container.
"""

import contextlib
import json
import os
import re
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from potstill.skills.processes import end_tree

_OPENS = re.compile(r"^```(?:python|py)?[ \t]*\n", re.MULTILINE | re.IGNORECASE)
_CLOSES = re.compile(r"^```[ \t]*$", re.MULTILINE)
_RUNNER = Path(__file__).with_name("sandboxed.py")
PASSED, FAILED = b".", b"!"
"""What the runner says last, as the program ended."""


@dataclass(frozen=True)
class Limits:
    """What a run of generated code may use."""

    seconds: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16


def find_code(text: str) -> str | None:
    """The code of an answer: its one fenced block, the last of several, or all of it where it has no fence and begins
    as code does; None where it seems to hold none."""
    block, place = None, 0
    while (opens := _OPENS.search(text, place)) and (closes := _CLOSES.search(text, opens.end())):
        block, place = text[opens.end() : closes.start()], closes.end()
    if block is not None:
        return block.strip("\n")
    begins = re.match(r"\s*(?:(?:def|class|import|from)\b|[@#])", text)
    return text.strip() if begins and "```" not in text else None


def passes(code: str, tests: str, limits: Limits) -> bool:
    """Whether the code and then the tests run to their end. A program that ends early, however gently, has not passed:
    the runner says a word at the end, which no variable holds before. What else is said to its pipe is a failure."""
    word = secrets.token_hex(16)
    job = {
        "code": code,
        "tests": tests,
        "seconds": max(1, round(limits.seconds)),
        "memory": limits.memory_mb << 20,
        "disk": limits.disk_mb << 20,
    }
    with tempfile.TemporaryDirectory(prefix="potstill-code-", ignore_cleanup_errors=True) as folder, _told(word) as end:
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"TMPDIR": folder, "HOME": folder, "PATH": os.defpath},
            start_new_session=True,
            pass_fds=(end,),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as given:
                given.write(json.dumps(job | {"word": end}).encode())
            said = _heard(process.stdout.fileno(), len(word) + 1, limits.seconds)
        finally:
            end_tree(process)
            process.stdout.close()
    return said == word.encode() + PASSED


@contextlib.contextmanager
def _told(word: str) -> Iterator[int]:
    """The end of a pipe that the word can be read from."""
    end, start = os.pipe()
    os.write(start, word.encode())
    os.close(start)
    try:
        yield end
    finally:
        os.close(end)


def _heard(pipe: int, most: int, seconds: float) -> bytes:
    """What is said until the runner is done, until the time is over, or until there is more than can be meant."""
    said, until = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(said) <= most and not said.endswith((PASSED, FAILED)):
            if not ready.select(max(0.0, until - time.monotonic())):
                return b""
            part = os.read(pipe, most + 1)
            if not part:
                break
            said += part
    return said
