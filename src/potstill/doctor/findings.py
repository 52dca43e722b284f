"""What a look at something gave."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """In a line."""

    about: str
    """What was looked at: "torch", "disk", "teacher"."""
    state: State
    what: str
    remedy: str = ""
    """Of a problem, what to do about it."""


def ok(about: str, what: str) -> Finding:
    """As it should be."""
    return Finding(about, "ok", what)


def note(about: str, what: str, remedy: str = "") -> Finding:
    """Worth knowing; nothing fails by it."""
    return Finding(about, "note", what, remedy)


def problem(about: str, what: str, remedy: str) -> Finding:
    """Something will fail."""
    return Finding(about, "problem", what, remedy)


def to_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """For programs."""
    found = list(findings)
    return {"problems": sum(one.state == "problem" for one in found), "findings": [asdict(one) for one in found]}
