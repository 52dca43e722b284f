"""An estimate as people read it: never a mean without its interval.

Pages and terminals are given a `Told`, which has no mean to print by itself: whatever it writes holds the interval, or
says that there is none and why, the number of values, and the coverage where it is below 1. A test keeps `["mean"]` out
of every other file that prints.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from potstill.reporting import charts

MOST_DIGITS = 6
NOTHING = "–"

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
        share = suite["share"] or suite.get("scale") == [0, 1]
        return cls(1, percent=True) if share else cls(2)

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
    range: str
    """The interval, or why there is none."""
    n: str
    coverage: str
    """Empty where everything could be scored."""

    @property
    def rest(self) -> str:
        """Everything but the mean."""
        return ", ".join(part for part in (self.range, self.n, self.coverage) if part)

    def __str__(self) -> str:
        return f"{self._mean} ({self.rest})"

    def __html__(self) -> Markup:
        """For a cell of its own: the mean, and below it, small, the rest."""
        below = Markup("<br>").join(part for part in (self.range, self.n, self.coverage) if part)
        return Markup('<span class="strong">{}</span><small>{}</small>').format(self._mean, below)

    def columns(self, strip: Markup) -> Markup:
        """For a row of its own: the mean, the strip that draws it, the interval, n and the coverage."""
        row = Markup(
            '<td class="figure strong">{}</td><td class="plot">{}</td><td class="range">{}</td>'
            '<td class="figure">{}</td><td class="figure{}">{}</td>'
        )
        short = " short" if self.coverage else ""
        return row.format(
            self._mean,
            strip,
            self.range,
            self.n.removeprefix("n "),
            short,
            self.coverage.removesuffix(" scored") or "100%",
        )

    def marked(self, between: str = " ", *, clear: bool = False) -> list[tuple[str, str]]:
        """For a terminal: (text, style) of the mean, which stands out where it is `clear`, and of the rest."""
        if self._mean == NOTHING:
            return [(f"{NOTHING} {self.coverage or 'not scored'}", "dim")]
        return [(self._mean, "bold" if clear else ""), (f"{between}[{self.range}], {self.rest_of_range}", "dim")]

    @property
    def rest_of_range(self) -> str:
        """n and the coverage."""
        return ", ".join(part for part in (self.n, self.coverage) if part)


def told(found: Estimate, form: Form) -> Told:
    """An estimate in words."""
    coverage = found.get("coverage", 1.0)
    short = "" if coverage == 1 or (found["mean"] is None and not coverage) else f"{part_of_all(coverage)} scored"
    if found["mean"] is None:
        return Told(NOTHING, "nothing could be scored", "", short)
    return Told(form(found["mean"]), interval(found, form), f"n {found['n']:,}", short)


def part_of_all(coverage: float) -> str:
    """A share that is not all of it, so that it does not look like it."""
    shown = f"{coverage:.0%}" if coverage < 0.995 else f"{coverage:.1%}"
    return shown if coverage == 1 or not shown.startswith("100") else "99.9%"


def interval(found: Estimate, form: Form) -> str:
    """The interval, or why there is none."""
    if found["mean"] is None:
        return "nothing could be scored"
    if found["low"] is None:
        return "no interval: one question"
    return f"{form(found['low'])} to {form(found['high'])}{form.unit}"


def strip(found: Estimate, span: tuple[float, float], colour: str, *, zero: bool = False) -> Markup:
    """The estimate drawn, its whiskers with its dot."""
    return charts.interval(found["mean"], found["low"], found["high"], span, colour, zero)


def reach(found: Sequence[Estimate]) -> float:
    """How far from 0 a plot of differences has to go."""
    ends = [abs(one[part]) for one in found for part in ("mean", "low", "high") if one[part] is not None]
    return 1.08 * max(ends, default=1.0) or 1.0
