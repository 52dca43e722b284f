"""A bar for judges: whether a judge's trial shows that it is good enough, that it is not, or neither.

A judge clears a bar where its whole 95% interval does. A point estimate above the bar with an interval that reaches
below it may be luck; whoever reads the scores that such a judge gave could not tell them from a bad one's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["clears it", "misses it", "cannot be told", "was not measured"]

_PATHS: Mapping[str, tuple[str, ...]] = {
    "agreement": ("agreement",),
    "agreement_where_decided": ("agreement_where_decided",),
    "kappa": ("kappa",),
    "coverage": ("coverage",),
    "consistency": ("position", "consistency"),
    "self_consistency": ("again", "same"),
    "spearman": ("correlation", "spearman"),
    "kendall": ("correlation", "kendall"),
    "position_bias": ("position", "first_share"),
    "length_bias": ("length", "bias"),
    "list_bias": ("lists", "bias"),
    "error": ("error", "absolute"),
}
"""Where in a judge's report each measure stands."""
CENTRES: Mapping[str, float] = {"position_bias": 0.5, "length_bias": 0.0, "list_bias": 0.0, "error": 0.0}
"""Measures that are to lie no further than the bar from this value; all others are to be no less than it."""
OF_ANSWERS = frozenset({"spearman", "kendall", "error"})
"""Measures that rest on graded answers; all others on comparisons, but for what grading covers."""
MOST_NEEDED = 10_000_000
"""An estimate that takes more than this to tell from the bar is the bar."""


@dataclass(frozen=True)
class Standing:
    """How a judge stands to one bar, by one trial."""

    judge: str
    trial: str
    measure: str
    bar: float
    verdict: Verdict
    mean: float | None = None
    """Of a bias, the distance from where there is none."""
    low: float | None = None
    high: float | None = None
    n: int = 0
    unit: str = "comparisons"
    needed: int | None = None
    """Where it cannot be told: about how many comparisons or answers would tell, if the estimate stays."""

    @property
    def holds(self) -> bool:
        """It is good enough, as far as this goes."""
        return self.verdict == "clears it"

    @property
    def text(self) -> str:
        """The measure with its interval, and the bar, in words."""
        name = self.measure.replace("_", " ")
        if self.mean is None:
            return f"{name} was not measured in trial '{self.trial}'"
        span = "without an interval" if self.low is None or self.high is None else f"[{self.low:.2f}, {self.high:.2f}]"
        limit = f"at most {self.bar:g}" if self.measure in CENTRES else f"{self.bar:g}"
        words = f"{name} {self.mean:.2f} {span} of {self.n:,} {self.unit} in trial '{self.trial}'; the bar is {limit}"
        if self.verdict != "cannot be told":
            return f"{words}: it {self.verdict}"
        return f"{words}: whether it clears it cannot be told" + (
            f", about {self.needed:,} {self.unit} would tell" if self.needed else ""
        )

    def to_json(self) -> dict[str, Any]:
        """For the facts and the scores."""
        return {name: value for name, value in asdict(self).items() if name != "judge" and value is not None}


def measured(protocol: str, repeats: int) -> frozenset[str]:
    """What a trial of that protocol can measure, other than for want of data."""
    of_both = {"agreement", "agreement_where_decided", "kappa", "coverage", "length_bias", "list_bias"}
    own = {"consistency", "position_bias"} if protocol == "pairwise" else OF_ANSWERS
    return frozenset(of_both | own | ({"self_consistency"} if repeats > 1 else set()))


def standings(judge: str, bar: Mapping[str, float], trials: Mapping[str, Mapping[str, Any]]) -> list[Standing]:
    """How a judge stands to each measure of the bar, in each trial that can measure it.

    `trials`: by name, what their trial.json hold, all of which tried the judge.
    """
    found: list[Standing] = []
    for measure, limit in bar.items():
        able = [name for name, trial in trials.items() if measure in measured(trial["protocol"], trial["repeats"])]
        names = able or [*trials][:1]
        found += [_standing(judge, name, measure, limit, trials[name]["judges"][judge]) for name in names]
    return found


def _standing(judge: str, trial: str, measure: str, bar: float, report: Mapping[str, Any]) -> Standing:
    value: Any = report
    for step in _PATHS[measure]:
        value = None if value is None else value.get(step)
    if value is None or value["mean"] is None:
        return Standing(judge, trial, measure, bar, "was not measured")
    centre = CENTRES.get(measure, 0.0)
    mean, low, high = (None if value[end] is None else value[end] - centre for end in ("mean", "low", "high"))
    graded = measure in ("coverage", "self_consistency") and "answers" in report
    unit = "answers" if graded or measure in OF_ANSWERS else "comparisons"
    verdict: Verdict = "cannot be told"
    needed, n = None, int(report[unit])
    if mean is not None and low is not None and high is not None and low < high:  # no spread at all is no interval
        margin = [one - bar for one in (mean, low, high)]
        if measure in CENTRES:
            least, most = sorted((abs(low), abs(high)))
            margin = [bar - abs(mean), bar - most, bar - (0.0 if low <= 0 <= high else least)]
        verdict = "clears it" if margin[1] >= 0 else "misses it" if margin[2] < 0 else verdict
        needed = _needed(margin, n) if verdict == "cannot be told" else None
    return Standing(judge, trial, measure, bar, verdict, mean, low, high, n, unit, needed)


def _needed(margin: Sequence[float], n: int) -> int | None:
    """How many the interval needs to end at the bar: its half shrinks with the root of their number."""
    mean, low, high = margin
    half = mean - low if mean >= 0 else high - mean
    if not mean or (needed := math.ceil(round(n * (half / mean) ** 2, 6))) > MOST_NEEDED:
        return None
    return needed
