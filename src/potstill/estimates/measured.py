"""How fast a device is: by its data sheet and what of it is reached as a rule, or measured, where it is this machine's.

Of a stage that trains on this machine some steps are taken beside that: see `trying`.
"""

import os
import time
from dataclasses import dataclass, replace

import psutil
import torch

from potstill.hardware import Device, Hardware
from potstill.training.memory import free_bytes
from potstill.training.models import DtypeName, choose_precision
from potstill.training.speed import matrix_peak
from potstill.training.tally import Roof

REACHED = {"products": 0.6, "bandwidth": 0.75}
"""Of a data sheet's peaks, what large products and plain copies reach on GPUs: an assumption."""
START_SECONDS = {"cuda": 5e-6, "cpu": 3e-6}
"""From one operation to the next, in eager PyTorch."""
STAGE_SECONDS = 10.0
"""A training process starts, loads and compares its model, and seals it."""
COPIED = 1 << 26


@dataclass(frozen=True)
class Pace:
    """What a device does."""

    kind: str
    roof: Roof
    said: str
    """What it rests on, in a sentence."""
    own_bytes: int = 0
    """Of a process without a model, on a CPU."""
    factor: float = 1.0
    """How much longer a step takes than the roofline says; measured, see `trying`."""
    kept: float = 0.0
    """Bytes of the process beyond its tensors, for each byte of tensors that come and go; measured likewise."""
    start_seconds: float = STAGE_SECONDS

    def precision(self, asked: DtypeName) -> torch.dtype:
        """What products would be computed in there."""
        if self.kind == "cuda" and asked == "auto":
            return torch.bfloat16
        return choose_precision(asked, torch.device("cpu"))


def pace_of(hardware: Hardware) -> tuple[Hardware, Pace]:
    """The pace, and the hardware with what was measured of it filled in."""
    device = hardware.device
    if not device.here:
        roof = Roof(
            REACHED["products"] * device.flops_per_second,
            REACHED["products"] * device.wide_flops_per_second,
            REACHED["bandwidth"] * device.bytes_per_second,
            START_SECONDS[device.kind],
        )
        said = (
            f"assumed: {REACHED['products']:.0%} of the data sheet's {device.flops_per_second / 1e12:,.0f} TFLOP/s in "
            f"bfloat16, {REACHED['bandwidth']:.0%} of {device.bytes_per_second / 1e9:,.0f} GB/s; nothing was measured "
            "on such a device"
        )
        return hardware, Pace(device.kind, roof, said)
    own = int(psutil.Process().memory_info().rss)
    found = _look(device)
    roof = Roof(found.flops_per_second, found.wide_flops_per_second, found.bytes_per_second, START_SECONDS[found.kind])
    said = (
        f"measured here: {found.flops_per_second / 1e12:.2f} TFLOP/s in products, {found.bytes_per_second / 1e9:.0f} "
        "GB/s in copies"
    )
    return replace(hardware, device=found), Pace(found.kind, roof, said, own)


def _look(device: Device) -> Device:
    """This machine's processors: how fast they are now, and what memory a process can have."""
    cpu = torch.device("cpu")
    half = matrix_peak(cpu, choose_precision("auto", cpu))
    wide = matrix_peak(cpu, torch.float32)
    source, target = torch.ones(COPIED // 4), torch.empty(COPIED // 4)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begun)
    own = int(psutil.Process().memory_info().rss)
    return replace(
        device,
        name=f"cpu ({_cores()} cores)",
        memory_bytes=own + free_bytes(cpu),
        flops_per_second=half,
        wide_flops_per_second=half if memory_products(cpu) else wide,
        bytes_per_second=2 * COPIED / best,
    )


def memory_products(cpu: torch.device) -> bool:
    """Whether float32 products that remain are made of bfloat16 factors; see `Scorer.products`."""
    return choose_precision("auto", cpu) == torch.bfloat16


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
