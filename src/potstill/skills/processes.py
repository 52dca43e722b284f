"""Ending a process with all that it started, those of its children that have left its session among them."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time

import psutil

ROUNDS = 100
"""How often it is looked again for what was started meanwhile."""
SUBREAPER = 36  # linux/prctl.h, PR_SET_CHILD_SUBREAPER


def adopt_orphans() -> None:
    """Make this process the parent of whatever its descendants leave behind, where the system has that (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def end_tree(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """Kill a process that leads a session of its own, and all that it started."""
    if process.poll() is None:
        for _ in range(ROUNDS):
            if not _kill_descendants(process.pid):
                break
            time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _kill_descendants(pid: int) -> bool:
    """Whether there were any."""
    found = False
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found = True
                    child.kill()
    return found
