"""The machine: cores, memory, disk, GPUs, how it stands to the network, and how fast torch is on it."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from potstill.doctor.findings import Finding, note, ok, problem
from potstill.units import memory

GIB = 1 << 30
LEAST_DISK, LITTLE_DISK = 2 * GIB, 20 * GIB
"""Below the first the miniature's run may not end; a checkpoint of a 1B model with AdamW takes more than half the
second."""
LITTLE_MEMORY = 4 * GIB
CGROUP = Path("/sys/fs/cgroup")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
SMI_SECONDS = 2.0


def look(folder: Path) -> Iterator[Finding]:
    """All of it that needs no torch. `folder`: where runs go."""
    yield _cores()
    yield _memory()
    yield _disk(folder)
    yield from _gpus()
    yield from _network()


def _cores() -> Finding:
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _cgroup("cpu.max").split()
    if len(share) == 2 and share[0].isdigit() and int(share[1]) > 0 and int(share[0]) / int(share[1]) < there:
        limit = int(share[0]) / int(share[1])
        remedy = f"Set OMP_NUM_THREADS={max(1, int(limit))}, or threads wait for each other"
        return note("cores", f"{there} are seen, and the container may use {limit:g}", remedy)
    return ok("cores", f"{there} may be used")


def _memory() -> Finding:
    free, whole = int(psutil.virtual_memory().available), int(psutil.virtual_memory().total)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    contained = ""
    if limit.isdigit() and int(limit) < whole:
        whole, contained = int(limit), " (the container's limit)"
        free = min(free, max(0, int(limit) - int(used or 0)))
    what = f"{memory(free)} of {memory(whole)} are free{contained}"
    if free < LITTLE_MEMORY:
        return note("memory", what, "Close what else runs, or see what a recipe needs: potstill plan --hardware cpu")
    return ok("memory", what)


def _cgroup(name: str) -> str:
    """What a file of a container's limits says (Linux, cgroups of version 2), or nothing."""
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""


def _disk(folder: Path) -> Finding:
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    try:
        free = shutil.disk_usage(at).free
    except OSError as error:
        return problem("disk", f"{folder} cannot be looked at: {error.strerror}", "Choose another folder with --out")
    what = f"{memory(free)} are free where runs go, {folder}"
    if not os.access(at, os.W_OK):
        return problem("disk", f"{at} cannot be written to", "Choose another folder with --out")
    if free < LEAST_DISK:
        return problem("disk", what, "Make room there, or choose another folder with --out")
    return note("disk", what, "Checkpoints of large models need more") if free < LITTLE_DISK else ok("disk", what)


def _gpus() -> Iterator[Finding]:
    """What the driver says; torch is asked elsewhere."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield note("GPU", "no NVIDIA driver is here (no nvidia-smi): models are computed on the CPU, or by Apple's MPS")
        return
    query = [program, "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        what = f"nvidia-smi does not answer ({type(error).__name__})"
        yield problem("GPU", what, "Load the driver, or give the container its GPUs (--gpus all)")
        return
    for number, line in enumerate(said.strip().splitlines()):
        name, total, free, driver = (part.strip() for part in [*line.split(","), "", "", ""][:4])
        yield ok(f"GPU {number}", f"{name}, {free} of {total} MiB free, driver {driver}")


def _network() -> Iterator[Finding]:
    offline = [name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if offline:
        yield ok("network", f"nothing is fetched from the Hub: {', '.join(offline)} is set")
    else:
        yield ok("network", "models and data sets by a Hub name are fetched where they are not in its cache")
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if proxies:
        remedy = "Servers on this machine need NO_PROXY=localhost,127.0.0.1"
        yield note("network", f"requests go by proxies: {', '.join(proxies)} set", remedy)


def look_with_torch() -> Iterator[Finding]:
    """What computes, how, and how fast: a moment's products."""
    try:
        import torch

        from potstill.training.attention import choose_kernel
        from potstill.training.models import bitsandbytes_fault, choose_device, choose_precision
        from potstill.training.speed import matrix_peak
    except Exception as error:  # a library that does not fit this machine raises what it likes
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        yield problem(
            "torch", f"it cannot be imported: {first}", "Install it anew: pip install --force-reinstall torch"
        )
        return
    device = choose_device()
    precision = choose_precision("auto", device)
    if device.type != "cuda" and shutil.which("nvidia-smi"):
        remedy = "Install a torch built for CUDA; torch.version.cuda says for which one this is"
        yield problem("torch", f"there is a GPU, and torch {torch.__version__} does not see one", remedy)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    yield ok("device", f"{named} is taken; products in {str(precision).removeprefix('torch.')}, the rest in float32")
    kernel = choose_kernel(device.type, precision, (128, 128), None, None, 0.0)
    why = {
        "varlen": "CUDA in half precision: torch's FlashAttention over paths without padding",
        "flex": "CUDA: FlexAttention",
        "rows": "no CUDA in half precision: rows by scaled-dot-product attention, or in blocks of our own",
    }[kernel]
    yield ok("attention", f"{kernel}; {why} (soft caps and odd widths take another)")
    begun = time.perf_counter()
    half = matrix_peak(device, precision)
    wide = matrix_peak(device, torch.float32)
    took = time.perf_counter() - begun
    yield ok("speed", f"{half / 1e12:.3g} TFLOP/s in {str(precision).removeprefix('torch.')}, {wide / 1e12:.3g} in "
             f"float32; measured in {took:.1f} s")  # fmt: skip
    if find_spec("bitsandbytes") and (fault := bitsandbytes_fault()):  # that it is not here is told with the packages
        yield note("bitsandbytes", fault, "quantize and qlora need it: pip install 'potstill[qlora]'")
