"""How much each server of a model is asked at once, and when. Pure arithmetic over a clock that it is given.

A lane is one server. Its width, the requests it may have in flight, halves where the server says that it is overloaded
and grows by one a round trip afterwards, as TCP's window does (Chiu and Jain 1989), up to what the recipe allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

BURST_SECONDS = 1.0
"""A limit a minute is spread: no more than this much of it goes out at once."""


@dataclass
class Bucket:
    """A limit a minute. It may be overdrawn by one request that is larger than what it holds, which is paid back."""

    per_minute: float
    level: float = field(init=False)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.size

    @property
    def size(self) -> float:
        return max(1.0, self.per_minute / 60 * BURST_SECONDS)

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken."""
        self._fill(now)
        missing = min(amount, self.size) - self.level
        return max(0.0, missing * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Take some, or with a negative amount give some back."""
        self.level = min(self.size, self.level - amount)

    def _fill(self, now: float) -> None:
        self.level = min(self.size, self.level + max(0.0, now - self._at) * self.per_minute / 60)
        self._at = now


@dataclass
class Lane:
    """One server."""

    url: str
    most: int
    """Requests in flight at most, as the recipe says."""
    requests: Bucket | None = None
    tokens: Bucket | None = None
    width: float = field(init=False)
    in_flight: int = 0
    failures: int = 0
    """Tries that failed since the last that was served."""
    overloads: int = 0
    """Times that it said it is overloaded since the last that was served."""
    absences: int = 0
    """Times, one after another, that nobody listened there."""
    rest_until: float = 0.0
    _cut_at: float = -inf
    _absent_at: float = -inf

    def __post_init__(self) -> None:
        self.width = float(self.most)

    def wait(self, now: float, tokens: float) -> float:
        """Seconds until it may be asked; infinite until one of its requests has ended."""
        if self.in_flight >= int(self.width):
            return inf
        waits = [self.rest_until - now]
        waits += [self.requests.wait(now, 1)] if self.requests else []
        waits += [self.tokens.wait(now, tokens)] if self.tokens else []
        return max(0.0, *waits)

    def take(self, tokens: float) -> None:
        """A request goes out."""
        self.in_flight += 1
        if self.requests:
            self.requests.take(1)
        if self.tokens:
            self.tokens.take(tokens)

    def release(self) -> None:
        """A request ended, whatever came of it."""
        self.in_flight -= 1

    def served(self, expected_tokens: float, used_tokens: float) -> None:
        """A reply came."""
        self.failures = self.overloads = self.absences = 0
        if self.tokens and used_tokens:
            self.tokens.take(used_tokens - expected_tokens)
        if self.in_flight >= int(self.width):  # growing what is not used would say nothing about the server
            self.width = min(float(self.most), self.width + 1 / self.width)

    def absent(self, now: float, began: float, rest: float) -> None:
        """Nobody listened. What was sent before that was last noticed says nothing new."""
        if began > self._absent_at:
            self.absences, self._absent_at = self.absences + 1, now
            self.rest_until = max(self.rest_until, now + rest)

    def overloaded(self, now: float, began: float, rest: float) -> None:
        """It said so, or was too slow, for a request that went out at `began`; leave it alone for `rest` seconds.

        What was sent before the last cut says nothing new: a storm of refusals cuts once a round trip.
        """
        self.absences = 0
        self.rest_until = max(self.rest_until, now + rest)
        if began > self._cut_at:
            self.width, self._cut_at = max(1.0, self.width / 2), now
            self.overloads += 1


def choose(lanes: Sequence[Lane], now: float, tokens: float, avoid: Lane | None = None) -> Lane | float:
    """The lane to ask, the least busy of those that may be; or the seconds to wait, infinite until something ends.

    `avoid` is where the request failed last: it is asked again only if no other lane is up.
    """
    waits = [(lane.wait(now, tokens), lane) for lane in lanes]
    free = [lane for wait, lane in waits if wait == 0]
    if len(lanes) > 1 and avoid is not None:
        others = [(wait, lane) for wait, lane in waits if lane is not avoid and lane.failures == 0]
        if others:
            waits, free = others, [lane for lane in free if lane is not avoid]
    if free:
        return min(free, key=lambda lane: (lane.failures > 0, lane.in_flight / lane.width))
    return min(wait for wait, _ in waits)
