"""What replies cost, hold and take, counted for everybody who asks, so that a budget holds whoever spends it."""

import threading
from dataclasses import dataclass, field
from typing import Any


class Ledger:
    """Money in USD: what was spent, and what is set aside for requests that are on their way.

    A request is sent only after the most that it can cost was set aside, so the budget is never passed.
    """

    def __init__(self, budget_usd: float | None = None, spent_usd: float = 0.0) -> None:
        self.budget_usd = budget_usd
        self._spent, self._reserved = spent_usd, 0.0
        self._open = 0
        self._lock = threading.Lock()

    @property
    def spent_usd(self) -> float:
        """What the replies that came have cost."""
        return self._spent

    @property
    def waits(self) -> bool:
        """Whether requests are on their way, which may cost less than what is set aside for them."""
        return self._open > 0

    def reserve(self, usd: float) -> bool:
        """Set money aside for one request; False where the budget does not allow it."""
        with self._lock:
            if self.budget_usd is not None:
                if usd > 0 and self._spent + self._reserved + usd > self.budget_usd:
                    return False
                self._reserved += usd
            self._open += 1
            return True

    def settle_late(self, usd: float) -> None:
        """Note what replies cost that nothing was set aside for: those of a batch job, perhaps of an earlier run."""
        with self._lock:
            self._spent += usd

    def settle(self, reserved_usd: float, spent_usd: float) -> None:
        """A request ended: give back what was set aside, and note what it cost."""
        with self._lock:
            self._open -= 1
            if self.budget_usd is not None:
                self._reserved = self._reserved - reserved_usd if self._open else 0.0
            self._spent += spent_usd


@dataclass
class Meter:
    """Counts the replies that a stage was handed, those of the journal too."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    squares: float = 0.0
    """The sum of the squares of each reply's tokens, prompt and answer together."""
    parts: "dict[tuple[str, str], Meter]" = field(default_factory=dict)
    """Of those: what was asked for one purpose of one model, by both names."""
    _whole: "Meter | None" = field(default=None, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def part(self, purpose: str, model: str) -> "Meter":
        """A meter of its own for what this one counts too."""
        return self.parts.setdefault((purpose, model), Meter(_whole=self))

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one reply. Threads may."""
        with self._lock:
            self.calls += 1
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens
            self.squares += float(prompt_tokens + completion_tokens) ** 2
        if self._whole is not None:
            self._whole.add(prompt_tokens, completion_tokens)


@dataclass
class Gauge:
    """What a model at hand is and takes. What it is may be sealed; the rest was measured, and is never the same."""

    parameters: int | None = None
    weights_bytes: int | None = None
    """On disk."""
    seconds: float = 0.0
    """Of writing."""
    tokens: int = 0
    """Written in that time, in all rows of its batches."""
    memory_bytes: int = 0
    """The most that it took; see `training.peak`."""
    memory_of: str = ""
    device: str = ""

    def measured(self) -> dict[str, Any]:
        """What was measured, as JSON."""
        return {
            "seconds": round(self.seconds, 3),
            "tokens": self.tokens,
            "memory_bytes": self.memory_bytes,
            "memory_of": self.memory_of,
            "device": self.device,
        }
