"""How many requests a loop needs that rejects what it has already: the more it holds, the more repeats come.

Where two tasks of the teacher's are repeats of each other with chance q, one more is new against s others with chance
exp(-q s). To go from s to s + n takes the integral of exp(q s), (exp(q (s + n)) - exp(q s)) / q, tasks that are sound.
"""

from dataclasses import dataclass
from math import ceil, exp, expm1, sqrt

from potstill.stages.base import NINE_IN_TEN, Range

REPEATS = ("duplicate", "not_novel")
"""What the reasons are called for which a row was left out that is there already."""
BEYOND = "beyond_count"
"""And one that came when there were enough."""


@dataclass(frozen=True)
class Loop:
    """What a small run of the loop showed."""

    requests: int
    kept: int
    dropped: dict[str, int]
    """Rows that were left out, by reason; those of whole replies are not among them."""
    known: int = 0
    """What it held before it began, such as seeds."""

    def requests_for(self, count: int, round_size: int, most: int) -> tuple[int, Range]:
        """Requests to keep `count`, in whole rounds and at most `most`: what is likely, and where 90% lie."""
        repeats = sum(self.dropped.get(reason, 0) for reason in REPEATS)
        beyond = self.dropped.get(BEYOND, 0)
        unsound = sum(self.dropped.values()) - repeats - beyond
        seen = self.kept + sum(self.dropped.values())
        sound_share = (self.kept + repeats + 1) / (self.kept + repeats + unsound + 1)
        each = max(seen / max(1, self.requests), 1e-9) * sound_share
        pairs = max(1.0, (self.known + self.kept / 2) * (self.kept + repeats))

        def needed(chance: float, each: float) -> int:
            tasks = (
                count
                if chance < 1e-12
                else exp(min(50.0, chance * self.known)) * expm1(min(50.0, chance * count)) / chance
            )
            return min(most, round_size * ceil(tasks / each / round_size))

        # Of a count of repeats, the root is known to within half a unit (Anscombe 1948); of the yield, its own spread.
        root, doubt = sqrt(repeats + 3 / 8), NINE_IN_TEN / 2
        spread = NINE_IN_TEN * sqrt(sound_share * (1 - sound_share) / max(1, self.kept + repeats + unsound))
        low = needed(max(0.0, root - doubt) ** 2 / pairs, each * (sound_share + spread) / sound_share)
        high = needed((root + doubt) ** 2 / pairs, each * max(0.05, sound_share - spread) / sound_share)
        likely = needed(repeats / pairs, each)
        return likely, (min(low, likely), max(high, likely))
