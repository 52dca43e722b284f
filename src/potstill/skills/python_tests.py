"""Running code that a model wrote against asserts: in a process of its own, with limits, and only when asked to.

The process is isolated from the user's environment (python -I, no variables, an empty folder that is deleted), may use
so much processor time, memory and disk and no more, is killed with all it started at its time limit, and has no network
where the kernel lets a process give its own up. That holds off accidents. It is no wall against an attacker: run code
that you would not run yourself in a container.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_RUNNER = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True)
class Limits:
    """What a run of generated code may use."""

    seconds: float = 10.0
    memory_mb: int = 512
    disk_mb: int = 16


def find_code(text: str) -> str | None:
    """The code of an answer: its one fenced block, the last of several, or all of it where it has no fence and begins
    as code does; None where it seems to hold none."""
    blocks = _FENCE.findall(text)
    if blocks:
        return str(blocks[-1]).strip("\n")
    begins = re.match(r"\s*(?:(?:def|class|import|from)\b|[@#])", text)
    return text.strip() if begins and "```" not in text else None


def passes(code: str, tests: str, limits: Limits) -> bool:
    """Whether the code and then the tests run to their end. A program that ends early, however gently, has not passed:
    the runner says a word at the end that the code is not told."""
    word = secrets.token_hex(16)
    job = json.dumps(
        {
            "code": code,
            "tests": tests,
            "word": word,
            "seconds": max(1, round(limits.seconds)),
            "memory": limits.memory_mb << 20,
            "disk": limits.disk_mb << 20,
        }
    )
    with tempfile.TemporaryDirectory(prefix="potstill-code-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"TMPDIR": folder, "HOME": folder, "PATH": os.defpath},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(job.encode(), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            _end(process)
    return process.returncode == 0 and said.decode(errors="replace") == word


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It and everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
