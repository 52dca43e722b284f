"""A user's tools in a process of their own: what a call may take is bounded, and what it prints reaches nobody.

Lines of JSON go both ways. A call that takes too long ends the process with all that it started; the next one gets a
new one.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.skills.processes import adopt_orphans, end_tree
from potstill.skills.tools import ToolError

START_SECONDS = 60.0
LONGEST_ERROR = 300


class ToolProcess:
    """The functions of users' files, called by their place in `functions`. Use it in a `with` block."""

    def __init__(self, functions: tuple[tuple[Path, str], ...], seconds: float) -> None:
        self._functions, self._seconds = functions, seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def __enter__(self) -> "ToolProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def call(self, place: int, arguments: Mapping[str, Any]) -> Any:
        """What the function returns. ToolError where it raises, takes too long, or ends its process."""
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"place": place, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._end()
            raise ToolError("the tool ended its process") from None
        line = self._next(self._seconds)
        if line is None:
            raise ToolError(f"the tool took longer than {self._seconds:g} s")
        answer = json.loads(line) if line else {"error": "the tool ended its process"}
        if not line:
            self._end()
        if "error" in answer:
            raise ToolError(answer["error"])
        return answer["result"]

    def _start(self) -> None:
        named = [[str(path), name] for path, name in self._functions]
        self._lines = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "potstill.skills.tool_process", json.dumps(named)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        if not self._next(START_SECONDS):  # the tools are loaded
            self._end()
            raise ToolError("the tools could not be loaded")

    def _next(self, seconds: float) -> str | None:
        """The next line; nothing where the process ended, None where it took too long, and was ended."""
        try:
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            self._end()
            return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_tree(process)
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")


def serve(functions: list[tuple[str, str]]) -> None:
    """In the process: load the functions, then answer calls until standard input ends."""
    from potstill.own import load
    from potstill.sources import Function

    adopt_orphans()
    wire = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a tool prints goes where errors go
    loaded = [load(Function(Path(path), name)) for path, name in functions]
    wire.write("ready\n")
    wire.flush()
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = {"result": loaded[job["place"]](**job["arguments"])}
            text = json.dumps(answer, allow_nan=False)
        except (Exception, SystemExit) as error:  # whatever a user's function raises is the model's to read
            said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR]
            text = json.dumps({"error": said})
        wire.write(text + "\n")
        wire.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
