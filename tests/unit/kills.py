"""Training runs that are killed, and what such a run leaves: shared by the tests of going on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


class Killed(BaseException):
    """What no code catches."""


@dataclass(frozen=True)
class Done:
    """All that a run leaves."""

    weights: dict[str, Tensor]
    curve: bytes
    facts: dict[str, Any]

    def same(self, other: "Done") -> bool:
        return (
            (self.curve, self.facts) == (other.curve, other.facts)
            and self.weights.keys() == other.weights.keys()
            and all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items())
        )


def kept(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "unfinished").glob("*"))


def kill_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, *, before: bool) -> None:
    """The at-th call of this function ends everything, before or after what it does."""
    function, calls = getattr(owner, name), iter(range(1, 1000))

    def dying(*args: Any, **kwargs: Any) -> Any:
        last = next(calls) == at
        if last and before:
            raise Killed
        result = function(*args, **kwargs)
        if last:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)
