"""What an estimate of a stage holds, in bytes, seconds and dollars."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from potstill.hardware import Hardware


@dataclass(frozen=True)
class Change:
    """A setting under which a stage that does not fit would."""

    overrides: tuple[str, ...]
    """As they are written on the command line; none: more devices alone."""
    devices: int
    peak_bytes: int

    def __str__(self) -> str:
        told = " ".join(self.overrides)
        return told if self.devices < 2 else f"{told} on {self.devices} devices with --launch"


@dataclass(frozen=True)
class Estimate:
    """Of one stage, or why there is none."""

    stage: str
    kind: str
    unknown: str = ""
    """Why nothing can be said; empty where something is."""
    devices: int = 1
    """How many of them work."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes of one device by what they are for, at the worst moment."""
    peak_bytes: int = 0
    """The most at once: the sum of these, or loading, where that is more."""
    available_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What "auto" would become, by the names of the recipe."""
    change: Change | None = None
    """Where it does not fit: the nearest setting that does; None: none was found."""
    tokens: int = 0
    seconds: float = 0.0
    starting_seconds: float = 0.0
    """Of these, before and after what is computed."""
    usd: float | None = None
    disk: Mapping[str, int] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    """What was not known, a sentence each."""

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.peak_bytes <= self.available_bytes

    def to_json(self) -> dict[str, Any]:
        """For programs. Units are in the names."""
        if self.unknown:
            return {"stage": self.stage, "kind": self.kind, "unknown": self.unknown}
        change = None
        if self.change is not None:
            change = {"overrides": list(self.change.overrides), "devices": self.change.devices,
                      "peak_bytes": self.change.peak_bytes}  # fmt: skip
        return {
            "stage": self.stage,
            "kind": self.kind,
            "devices": self.devices,
            "memory_bytes": dict(self.memory),
            "peak_bytes": self.peak_bytes,
            "available_bytes": self.available_bytes,
            "fits": self.fits,
            "settings": dict(self.settings),
            "nearest_setting": change,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "starting_seconds": self.starting_seconds,
            "usd": None if self.usd is None else round(self.usd, 4),
            "disk_bytes": dict(self.disk),
            "assumed": list(self.assumed),
        }


@dataclass(frozen=True)
class Estimates:
    """Of all stages that would run and compute here."""

    hardware: Hardware
    stages: tuple[Estimate, ...]
    pace: str
    """What times rest on, in a sentence."""
    downloads: Mapping[str, int]
    """Bytes of models that lie on the Hub and not here."""

    @property
    def seconds(self) -> float:
        """One after the other."""
        return sum(one.seconds for one in self.stages)

    @property
    def usd(self) -> float | None:
        """Of the devices, also of those that wait; None: without a price."""
        price = self.hardware.device.usd_per_hour
        return None if price is None else self.seconds / 3600 * price * self.hardware.count

    @property
    def disk_bytes(self) -> int:
        """At the end of the run, what is removed on the way included."""
        return sum(self.downloads.values()) + sum(sum(one.disk.values()) for one in self.stages)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        device = self.hardware.device
        return {
            "hardware": {
                "count": self.hardware.count,
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "bfloat16_flops_per_second": device.flops_per_second,
                "float32_flops_per_second": device.wide_flops_per_second,
                "bytes_per_second": device.bytes_per_second,
                "usd_per_hour": device.usd_per_hour,
            },
            "pace": self.pace,
            "stages": [one.to_json() for one in self.stages],
            "downloads_bytes": dict(self.downloads),
            "seconds": round(self.seconds, 1),
            "usd": None if self.usd is None else round(self.usd, 2),
            "disk_bytes": self.disk_bytes,
        }
