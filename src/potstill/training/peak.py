"""How much memory a model takes while it works: a GPU's own count, or what the process has grown by since before."""

import contextlib
import ctypes
import gc
from pathlib import Path

import psutil
import torch


class PeakMemory:
    """Made before a model is loaded; `bytes` is the most that there was above what stood then.

    On a GPU that is what torch held there. Elsewhere it is the memory that the process has in use (its resident set),
    the highest that the kernel saw where it says so (Linux), else the highest that `look` came upon.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = self._seen = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError, AttributeError):  # not everywhere: give back what earlier models left
            ctypes.CDLL(None).malloc_trim(0)
        self._kernel = _forget_highest()
        self._before = self._seen = int(psutil.Process().memory_info().rss)

    @property
    def of(self) -> str:
        """What is looked at: "device" or "process"."""
        return "device" if self._device.type == "cuda" else "process"

    @property
    def before(self) -> int:
        """What stood then."""
        return self._before

    def look(self) -> None:
        """Note how much there is now; cheap."""
        if self._device.type != "cuda" and not self._kernel:
            self._seen = max(self._seen, int(psutil.Process().memory_info().rss))

    @property
    def bytes(self) -> int:
        """The most so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        self.look()
        return max(self._seen, _highest() if self._kernel else 0) - self._before


def _forget_highest() -> bool:
    """Have the kernel count its highest anew; False where it does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _highest() > 0


def _highest() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0
