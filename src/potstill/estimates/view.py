"""What `potstill plan --hardware` prints: a table of stages, what does not fit, and what is assumed."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from potstill.estimates.base import Estimate, Estimates
from potstill.hardware import GIB
from potstill.units import duration, memory

WIDE = 110
"""Columns of a terminal from which on memory is told by its parts in the table."""


def estimate_view(console: Console, estimates: Estimates) -> None:
    """The table, and below it in sentences what it rests on."""
    device = estimates.hardware.device
    told = f"On {estimates.hardware}, {memory(device.memory_bytes)} of memory"
    console.print(f"\n{told}{' each' if estimates.hardware.count > 1 else ''}:\n", soft_wrap=True)
    known = [one for one in estimates.stages if not one.unknown]
    if known:
        wide = console.width >= WIDE
        console.print(_table(estimates, known, wide=wide))
        console.print()
        for one in () if wide else known:
            console.print(Text(f"{one.stage}, GiB: {_parts(one)}", "dim"))
        if not wide:
            console.print()
    for one in known:
        if not one.fits:
            console.print(Text(_misfit(one)), soft_wrap=True)
    for one in estimates.stages:
        if one.unknown:
            console.print(Text(f"{one.stage}: {one.unknown}"), soft_wrap=True)
    if not estimates.stages:
        console.print("No stage that would run computes on it.")
    for sentence in _sentences(estimates):
        console.print(Text(sentence), soft_wrap=True)


def _table(estimates: Estimates, known: Sequence[Estimate], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if wide:
        table.add_column("of which, GiB")
    for name in ("at once", "time", "disk", *(["USD"] if estimates.usd is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in known:
        at_once = one.settings.get("micro_batch_tokens")
        recomputed = "+" if one.settings.get("activation_checkpointing") else ""
        table.add_row(
            one.stage,
            memory(one.peak_bytes),
            Text("fits", "green") if one.fits else Text("too much", "red"),
            *([_parts(one)] if wide else []),
            f"{at_once:,}{recomputed}" if at_once else "",
            duration(one.seconds),
            memory(sum(one.disk.values())) if one.disk else "",
            *([f"{one.usd or 0:,.2f}"] if estimates.usd is not None else []),
        )
    return table


def _parts(one: Estimate) -> str:
    """The largest parts, in GiB."""
    parts = sorted(one.memory.items(), key=lambda part: -part[1])
    shown = [f"{name} {value / GIB:.1f}" for name, value in parts if value >= 0.02 * max(1, one.peak_bytes)]
    loading = one.peak_bytes > sum(one.memory.values())
    return ", ".join(shown) + (f"; loading {one.peak_bytes / GIB:.1f}" if loading else "")


def _misfit(one: Estimate) -> str:
    """A stage that does not fit, and what would."""
    head = f"{one.stage} needs {memory(one.peak_bytes)} and there are {memory(one.available_bytes)}"
    if one.change is None:
        return f"{head}. No setting was found that fits: a smaller model, a shorter max_length, or larger devices."
    return f"{head}. The nearest setting that fits: {one.change} ({memory(one.change.peak_bytes)})."


def _sentences(estimates: Estimates) -> list[str]:
    found = []
    if any(one.settings.get("micro_batch_tokens") for one in estimates.stages):
        found.append(
            'Memory is that of one device at the worst moment. "At once" are the tokens of a micro-batch, + where '
            "activations are computed a second time."
        )
    if estimates.stages:
        total = f"In all {duration(estimates.seconds)} of computing"
        if estimates.usd is not None:
            each = estimates.hardware.device.usd_per_hour
            total += f", ${estimates.usd:,.2f} at ${each:,.2f} an hour and device"
        total += f"; {memory(estimates.disk_bytes)} of disk"
        if estimates.downloads:
            total += (
                f", {memory(sum(estimates.downloads.values()))} of it for downloads of {', '.join(estimates.downloads)}"
            )
        found.append(total + ". Time in which teachers behind endpoints answer comes on top.")
        if estimates.usd is None and estimates.hardware.device.kind == "cuda":
            found.append("No price of such a device is known: give one by --gpu-usd.")
    found.append(f"Speed is {estimates.pace}.")
    assumed = list(dict.fromkeys(sentence for one in estimates.stages for sentence in one.assumed))
    if assumed:
        found.append(f"Assumed: {'; '.join(assumed)}.")
    return found
