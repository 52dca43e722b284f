"""Devices that a plan can be made for: what their vendors say they do, what memory they leave, what an hour costs.

Written `8xH100`, `rtx4090`, `2xA100-80GB`, `1x24GB`, `cpu`, or a device of one's own `4x48GB@150TFLOPS@1.2USD`.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from potstill.errors import RecipeError
from potstill.validation import nearest

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One device, as the one plan reads it that is made for it."""

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: int
    """What a process can have of it: what CUDA reports as its total, some percent below what is printed on it."""
    flops_per_second: float
    """Of dense matrix products in bfloat16 with sums in float32, as the vendor's data sheet says; 0: nobody knows."""
    wide_flops_per_second: float
    """The same in float32."""
    bytes_per_second: float
    """To and from its memory; 0: nobody knows."""
    link_bytes_per_second: float = 0.0
    """To another device of the same machine, one way."""
    usd_per_hour: float | None = None
    here: bool = False
    """It is this machine's own, so that what it does can be measured."""


@dataclass(frozen=True)
class Hardware:
    """What a plan is made for."""

    count: int
    device: Device

    def __str__(self) -> str:
        return f"{self.count} x {self.device.name}" if self.count > 1 else self.device.name


PCIE4, PCIE5 = 25e9, 50e9
"""What a x16 slot moves one way, of 32 and 64 GB/s nominal."""


def _gpu(
    name: str, gib: float, tflops: tuple[float, float], gbytes: float, link: float = PCIE4, usd: float | None = None
) -> tuple[str, Device]:
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    half, wide = (1e12 * value for value in tflops)
    return key, Device(name, "cuda", round(gib * GIB), half, wide, gbytes * 1e9, link, usd)


# Peaks and bandwidths: NVIDIA's data sheets of each device (dense, without sparsity; for GeForce and RTX whitepapers of
# Ampere, Ada and Blackwell, bfloat16 with float32 sums). Memory: torch.cuda.get_device_properties(0).total_memory.
# Dollars an hour of one GPU: the middle of what specialised clouds ask on demand, as compiled in May 2026
# (mercatus-ai.com/blog/cloud-gpu-pricing: A100 80GB 1.10 to 1.50, H100 2.50 to 3.50, H200 3.50 to 4.50). Where none
# stands there is no dated source: say --gpu-usd.
DEVICES: dict[str, Device] = dict(
    [
        _gpu("H100", 79.1, (989.4, 66.9), 3350, 450e9, 3.00),
        _gpu("H100-PCIe", 79.1, (756, 51.2), 2000, PCIE5, 3.00),
        _gpu("H200", 139.7, (989.4, 66.9), 4800, 450e9, 4.00),
        _gpu("B200", 178.3, (2250, 75), 8000, 900e9),
        _gpu("A100-80GB", 79.1, (312, 19.5), 2039, 300e9, 1.30),
        _gpu("A100-40GB", 39.4, (312, 19.5), 1555, 300e9),
        _gpu("L40S", 44.4, (362, 91.6), 864),
        _gpu("L4", 22.0, (121, 30.3), 300),
        _gpu("A10", 22.0, (125, 31.2), 600),
        _gpu("A6000", 47.4, (154.8, 38.7), 768),
        _gpu("RTX6000-Ada", 47.4, (182.1, 91.1), 960),
        _gpu("RTX3090", 23.6, (71, 35.6), 936),
        _gpu("RTX4080", 15.6, (97.5, 48.7), 717),
        _gpu("RTX4090", 23.5, (165.2, 82.6), 1008),
        _gpu("RTX5090", 31.4, (209.5, 104.8), 1792, PCIE5),
    ]
)
ALIASES = {"a100": "a10080gb", "h100sxm": "h100", "h10080gb": "h100", "4090": "rtx4090", "3090": "rtx3090",
           "5090": "rtx5090", "4080": "rtx4080", "rtxa6000": "a6000"}  # fmt: skip

OF_PRINTED = 0.97
"""The share of the printed gigabytes, taken as 2^30 bytes, that a process can have where only these are known."""
TYPICAL_FLOPS, TYPICAL_WIDE, TYPICAL_BYTES = 150e12, 80e12, 900e9
"""Of a device of which only the memory is said: about an RTX 4090's."""

_COUNT = re.compile(r"([0-9]{1,9})\s*[xX*]\s*(.+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB)", re.IGNORECASE)
_AT = re.compile(r"(\d+(?:\.\d+)?)\s*(TFLOPS?|USD|GB/s)", re.IGNORECASE)
WHERE = "--hardware"


def parse(text: str, gpu_usd: float | None = None) -> Hardware:
    """What the words stand for; RecipeError where they stand for nothing. `gpu_usd`: the price of a device's hour.

    The device `cpu` is left open, with zeros: only a look at this machine can fill it; see `Device.here`.
    """
    whole = text.strip()
    found = _COUNT.fullmatch(whole)
    count, rest = (int(found[1]), found[2]) if found else (1, whole)
    if not 1 <= count <= 100_000:
        raise RecipeError(f"{WHERE} {text}", f"{count:,} devices; expected 1 to 100,000", "Write it as 8xH100")
    name, *said = (part.strip() for part in rest.split("@"))
    device = _written_over(_device(name, text), said, text)
    if device.kind == "cpu" and count > 1:
        what = "a plan is made for one machine's processors; several machines are no devices of one"
        raise RecipeError(f"{WHERE} {text}", what, "Write cpu")
    return Hardware(count, device if gpu_usd is None else replace(device, usd_per_hour=gpu_usd))


def _device(name: str, text: str) -> Device:
    key = re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))
    if key == "cpu":
        return Device("cpu", "cpu", 0, 0.0, 0.0, 0.0, here=True)
    if size := _SIZE.fullmatch(name):
        gib = float(size[1])
        if not 0 < gib <= 100_000:
            raise RecipeError(f"{WHERE} {text}", f"{name} is no size of a memory", "Write it as 24GB")
        return Device(
            f"{name} GPU", "cuda", round(OF_PRINTED * gib * GIB), TYPICAL_FLOPS, TYPICAL_WIDE, TYPICAL_BYTES, PCIE4
        )
    known = DEVICES.get(ALIASES.get(key, key))
    if known is None:
        near = nearest(key, [*DEVICES, *ALIASES])
        what = (
            f"'{name}' is no device that is known here{near}; known are {', '.join(d.name for d in DEVICES.values())}"
        )
        raise RecipeError(f"{WHERE} {text}", what, "Write one of them, cpu, or your own as 4x48GB@150TFLOPS@1.2USD")
    return known


def _written_over(device: Device, said: list[str], text: str) -> Device:
    """What stands behind each @."""
    for part in said:
        found = _AT.fullmatch(part)
        if not found or float(found[1]) <= 0:
            what = f"'@{part}' says nothing that is known; expected @150TFLOPS, @900GB/s or @1.2USD"
            raise RecipeError(f"{WHERE} {text}", what, "Write it as 4x48GB@150TFLOPS@1.2USD")
        value, unit = float(found[1]), found[2].lower()
        if unit.startswith("tflop"):
            device = replace(device, flops_per_second=value * 1e12)
        elif unit == "usd":
            device = replace(device, usd_per_hour=value)
        else:
            device = replace(device, bytes_per_second=value * 1e9)
    return device
