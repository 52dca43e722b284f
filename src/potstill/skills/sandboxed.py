"""The process that generated code runs in: bounds itself, runs the code and its tests, and says the word at the end.

Started by `python_tests`, as a file of its own under python -I: it knows nothing of potstill.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h


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
        ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)


def main() -> None:
    """Read the job from standard input, run it."""
    job = json.loads(sys.stdin.buffer.read())
    out = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    word = job.pop("word")
    bound(job["seconds"], job["memory"], job["disk"])
    names = {"__name__": "answer"}
    exec(compile(job["code"], "answer.py", "exec"), names)
    exec(compile(job["tests"], "tests.py", "exec"), names)
    os.write(out, word.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
