"""The process of one side: it reads jobs as lines of JSON, and answers each with what was measured.

Both environments run this, so it imports nothing but the standard library, and torch where a job has imported it.
"""

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Measured = dict[str, Any]


def serve(handlers: dict[str, Callable[[Job], Measured]]) -> None:
    """Answer until standard input ends. Whatever else is printed goes to standard error, the side's log."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        if job.get("trim"):
            trim()
        own = reset_peak()
        try:
            answer = handlers[job["do"]](job)
            answer |= {"peak_bytes": peak_bytes(), "peak_is_own": own}
        except Exception:
            traceback.print_exc()
            answer = {"error": traceback.format_exc()}
        release()
        out.write(json.dumps(answer) + "\n")
        out.flush()


def release() -> None:
    """Forget what a job left. On a CPU its memory stays the process's own, as it does from step to step of a long
    training: a round is a piece of one, and would otherwise begin by fetching every page anew."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim() -> None:
    """Give the system back what the process's allocator keeps; glibc's alone can."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> bool:
    """Measure the peak anew; False where the kernel does not allow it, and the peak is that of the process's life."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most memory held since the reset: on the GPU where there is one, otherwise resident in this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def settle() -> None:
    """Wait until a GPU has done what it was asked, so that a clock read now is right."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def versions(*packages: str) -> Measured:
    """Of Python and of these packages in this environment; torch's threads with them."""
    from importlib.metadata import version

    import torch

    found = {"python": sys.version.split()[0]} | {name: version(name) for name in packages}
    return {"versions": found, "threads": torch.get_num_threads()}
