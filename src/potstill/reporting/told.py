"""An estimate as people read it: never a mean without its interval.

Pages and terminals are given a `Told`, which has no mean to print by itself: whatever it writes holds the interval, or
says that there is none and why, the number of values, and the coverage where it is below 1. A test keeps means out of
every other file that prints.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from potstill.evaluation.statistics import LEAST_SCORED
from potstill.reporting import charts

MOST_DIGITS = 6
NOTHING = "–"
ONE_QUESTION = "no interval: one question"

Estimate = Mapping[str, Any]
"""An estimate or a difference as it stands in scores.json."""


@dataclass(frozen=True)
class Form:
    """How the numbers of a suite are written."""

    digits: int = 2
    percent: bool = False
    signed: bool = False
    """Differences have a sign; those of shares are in points."""

    @classmethod
    def of(cls, suite: Mapping[str, Any]) -> "Form":
        """A share in percent with one digit, everything else with two."""
        return cls(1, percent=True) if suite["share"] or suite["unit"].startswith("share") else cls(2)

    def difference(self, found: Estimate) -> "Form":
        """With a sign, and as many digits as it takes for what is not zero not to look like it."""
        ends = [abs(self.scale * found[part]) for part in ("mean", "low", "high") if found[part]]
        digits = self.digits
        while digits < MOST_DIGITS and any(round(end, digits) == 0 for end in ends):
            digits += 1
        return Form(digits, self.percent, signed=True)

    @property
    def scale(self) -> float:
        """Between a value and what is written of it."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """What is written behind a difference."""
        return " points" if self.percent and self.signed else ""

    def __call__(self, value: float) -> str:
        """A value; zero has no sign."""
        text = f"{self.scale * value:{'+' if self.signed else ''}.{self.digits}f}"
        if not re.search("[1-9]", text):
            text = text.lstrip("+-")
        return text.replace("-", "−") + ("%" if self.percent and not self.signed else "")


@dataclass(frozen=True)
class Told:
    """One estimate in words. `str()` is the whole of it."""

    _mean: str
    _ends: tuple[str, str] | None
    _unit: str
    n: str
    coverage: str
    """Empty where everything could be scored."""
    questions: str = ""
    """Where the interval is of other seeds too: the one of these very models."""

    @property
    def range(self) -> str:
        """The interval, or why there is none."""
        if self._mean == NOTHING:
            return f"too little: {self.coverage}" if self.coverage else "nothing could be scored"
        return ONE_QUESTION if self._ends is None else f"{' to '.join(self._ends)}{self._unit}"

    def __str__(self) -> str:
        return (
            f"{self._mean}{self._unit} ({', '.join(part for part in (self._interval, self.n, self.coverage) if part)})"
        )

    @property
    def _interval(self) -> str:
        return self.range if self._ends is None else f"95% interval {' to '.join(self._ends)}"

    @property
    def brief(self) -> str:
        """With the interval alone, where n and coverage stand in the same sentence."""
        return f"{self._mean} ({self.range})"

    def __html__(self) -> Markup:
        """For a cell of its own: the mean, and below it, small, the rest."""
        of_these = f"of these seeds: {self.questions}" if self.questions else ""
        below = Markup("<br>").join(part for part in (self.range, of_these, self.n, self.coverage) if part)
        return Markup('<span class="strong">{}</span><small>{}</small>').format(self._mean, below)

    def columns(self, strip: Markup, *, coverage: bool = True) -> Markup:
        """For a row of its own: the mean, the strip that draws it, the interval, n, and the coverage if asked for."""
        row = Markup(
            '<td class="figure strong">{}</td><td class="plot">{}</td><td class="range">{}{}</td>'
            '<td class="figure">{}</td>'
        )
        of_these = Markup("<small>of these seeds: {}</small>").format(self.questions) if self.questions else ""
        found = row.format(self._mean, strip, self.range, of_these, self.n.removeprefix("n "))
        if not coverage:
            return found
        short, share = " short" if self.coverage else "", self.coverage.removesuffix(" scored") or "100%"
        return found + Markup('<td class="figure{}">{}</td>').format(short, share)

    def marked(self, between: str = " ", *, clear: bool = False, n: bool = True) -> list[tuple[str, str]]:
        """For a terminal, (text, style): the mean, which stands out where it is `clear`, and the rest.

        `n`: whether to say it, where the row does not.
        """
        if self._mean == NOTHING:
            return [("-", "dim"), (f"{between}{self.coverage}" if self.coverage else "", "dim")]
        span = "[one question]" if self._ends is None else f"[{', '.join(self._ends)}]"
        rest = ", ".join(part for part in (self.n if n or self.coverage else "", self.coverage) if part)
        return [(self._mean, "bold" if clear else ""), (f"{between}{span}{between if rest else ''}{rest}", "dim")]


def told(found: Estimate, form: Form) -> Told:
    """An estimate in words."""
    coverage = found.get("coverage", 1.0)
    short = "" if coverage == 1 or (found["mean"] is None and not coverage) else f"{part_of_all(coverage)} scored"
    if found["mean"] is None or coverage < LEAST_SCORED:
        return Told(NOTHING, None, "", "", short)
    alone = found.get("questions")
    alone = "" if not isinstance(alone, Mapping) or alone["low"] is None else " to ".join(_ends(alone, form))
    ends = None if found["low"] is None else _ends(found, form)
    return Told(form(found["mean"]), ends, form.unit, f"n {found['n']:,}", short, alone)


def told_difference(found: Estimate, form: Form) -> Told:
    """A difference in words, with its sign."""
    return told(found, form.difference(found))


def _ends(found: Estimate, form: Form) -> tuple[str, str]:
    return form(found["low"]), form(found["high"])


def part_of_all(coverage: float) -> str:
    """A share that is not all of it, so that it does not look like it."""
    shown = f"{coverage:.0%}" if coverage < 0.995 else f"{coverage:.1%}"
    return shown if coverage == 1 or not shown.startswith("100") else "99.9%"


def seeds_apart(found: Estimate, form: Form) -> str:
    """The lowest and the highest of a family's members, which stand beside its mean and interval."""
    members = [one for one in found.get("members", {}).values() if one is not None]
    return f"{form(min(members))} to {form(max(members))}" if len(members) > 1 else ""


def strip(found: Estimate, span: tuple[float, float], colour: str, *, zero: bool = False) -> Markup:
    """The estimate drawn, its whiskers with its dot."""
    return charts.interval(found["mean"], found["low"], found["high"], span, colour, zero)


def reach(found: Sequence[Estimate | None]) -> float:
    """How far from 0 a plot of differences has to go."""
    ends = [abs(one[part]) for one in found if one for part in ("mean", "low", "high") if one[part] is not None]
    return 1.08 * max(ends, default=1.0) or 1.0


def values(found: Sequence[Estimate]) -> list[float | None]:
    """To be drawn in a chart that stands beside the table of the same estimates."""
    return [one["mean"] for one in found]


def extent(found: Sequence[Estimate]) -> list[float]:
    """Everything that a strip of these has to hold."""
    return [one[part] for one in found for part in ("low", "high", "mean") if one[part] is not None]


def widest(found: Sequence[Estimate]) -> float:
    """The width of the widest interval."""
    return max((one["high"] - one["low"] for one in found if one["low"] is not None), default=0.0)
