"""The processes that generated code runs in: one bounds itself and waits, its child runs the code and the tests.

The child says the word at the end, which it reads from a pipe only then; the other says how the child ended, and stays
as the parent of whatever was started, until it is killed with all of that. Started by `python_tests`, as a file of its
own under python -I: it knows nothing of potstill.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000  # linux/sched.h
SUBREAPER = 36  # linux/prctl.h


def bound(seconds: int, memory: int, disk: int) -> None:
    """Give up what is not needed, for this process and all that it starts."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, disk),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # macOS has no bound on addresses
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it, and not every container lets one
        libc = ctypes.CDLL(None)
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
        if libc.unshare(NEW_USER | NEW_PROCESSES | NEW_NETWORK):
            libc.unshare(NEW_USER | NEW_NETWORK)


def main() -> None:
    """Read the job from standard input, have it run, and wait to be killed."""
    job = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    bound(job["seconds"], job["memory"], job["disk"])
    child = os.fork()
    if child == 0:
        run(job, out)
    _, status = os.waitpid(child, 0)
    os.write(out, b"." if status == 0 else b"!")
    while True:
        signal.pause()


def run(job: dict[str, Any], out: int) -> None:
    """In the child: run the code and its tests, say the word, end."""
    try:
        names = {"__name__": "answer"}
        exec(compile(job["code"], "answer.py", "exec"), names)
        exec(compile(job["tests"], "tests.py", "exec"), names)
        os.write(out, os.read(job["word"], 64))
        os._exit(0)
    except BaseException:
        os._exit(1)


if __name__ == "__main__":
    main()
