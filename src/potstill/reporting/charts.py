"""Charts as hand-made SVG: strips and intervals in percent of their cell, a radar, curves. Colours are CSS classes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
COLOURS = 8
MOST_DOTS = 40
"""Classes c0 to c7 of the style sheet."""


def colour_classes(names: Sequence[str]) -> dict[str, str]:
    """A colour a model: the first is the quietest, the last the page's own."""
    last = len(names) - 1
    return {name: "c7" if i == last and last else f"c{min(i, COLOURS - 2)}" for i, name in enumerate(names)}


def interval(
    mean: float | None,
    low: float | None,
    high: float | None,
    span: tuple[float, float],
    colour: str,
    zero: bool = False,
) -> Markup:
    """A dot with its whiskers on a line from span[0] to span[1]; `zero` draws the line of no difference."""

    def at(value: float) -> str:
        share = (value - span[0]) / (span[1] - span[0]) if span[1] > span[0] else 0.5
        return f"{2 + 96 * min(1.0, max(0.0, share)):.2f}%"

    parts = [Markup('<line class="axis" x1="2%" x2="98%" y1="50%" y2="50%"/>')]
    if zero:
        parts = [Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(at(0.0))]
    if low is not None and high is not None:
        parts.append(Markup('<line class="whisker" x1="{}" x2="{}" y1="50%" y2="50%"/>').format(at(low), at(high)))
    if mean is not None:
        parts.append(Markup('<circle class="dot" cx="{}" cy="50%" r="5"/>').format(at(mean)))
    return Markup('<svg class="strip {}" aria-hidden="true">{}</svg>').format(colour, Markup("").join(parts))


def bar(share: float) -> Markup:
    """A bar that fills that share of its cell."""
    return Markup(
        '<svg class="bar" aria-hidden="true"><rect x="0" y="0" width="{}%" height="100%" rx="2"/></svg>'
    ).format(f"{100 * min(1.0, max(0.0, share)):.2f}")


def radar(
    axes: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    span: tuple[float, float],
    colours: Mapping[str, str],
) -> Markup:
    """One polygon a row over at least three axes."""
    assert len(axes) >= 3, "a radar of fewer than three axes has no area"
    centre, radius = (260.0, 205.0), 168.0
    angles = [2 * math.pi * i / len(axes) - math.pi / 2 for i in range(len(axes))]

    def point(i: int, share: float) -> Point:
        return centre[0] + radius * share * math.cos(angles[i]), centre[1] + radius * share * math.sin(angles[i])

    parts = [
        Markup('<polygon class="ring" points="{}"/>').format(points(point(i, r / 4) for i in range(len(axes))))
        for r in range(1, 5)
    ]
    for i, axis in enumerate(axes):
        (x, y), (label_x, label_y) = point(i, 1), point(i, 1.11)
        anchor = "middle" if abs(label_x - centre[0]) < 12 else "start" if label_x > centre[0] else "end"
        parts.append(Markup('<line class="spoke" x1="{}" y1="{}" x2="{:.1f}" y2="{:.1f}"/>').format(*centre, x, y))
        parts.append(
            Markup('<text class="axis-name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                label_x, label_y + 5, anchor, axis
            )
        )
    for name, values in rows.items():
        shares = [max(0.0, (v - span[0]) / (span[1] - span[0])) for v in values]
        corners = [point(i, share) for i, share in enumerate(shares)]
        parts.append(
            Markup('<g class="{}"><polygon class="area" points="{}"><title>{}</title></polygon>{}</g>').format(
                colours[name], points(corners), name, corner_dots(corners)
            )
        )
    for r in range(5):
        x, y = point(0, r / 4)
        value = span[0] + (span[1] - span[0]) * r / 4
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{:.1f}">{:g}</text>').format(x + 4, y + 3, round(value, 2))
        )
    return Markup(
        '<svg class="radar" viewBox="0 0 520 410" role="img" aria-label="Mean score by category">{}</svg>'
    ).format(Markup("").join(parts))


def corner_dots(corners: Sequence[Point]) -> Markup:
    """A dot at each."""
    return Markup("").join(
        Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(x, y) for x, y in corners
    )


def points(places: Iterable[Point]) -> str:
    """Places as SVG writes them."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


WIDTH, HEIGHT = 360.0, 214.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 10.0, 184.0


@dataclass(frozen=True)
class Frame:
    """The axes of a chart of lines."""

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    x_span: Point
    y_span: Point

    @staticmethod
    def around(xs: Sequence[float], ys: Sequence[float]) -> "Frame":
        """The axes that hold all of these."""
        x_ticks, y_ticks = ticks(min(xs), max(xs), 4), ticks(min(ys), max(ys), 4)
        x_span = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
        return Frame(x_ticks, y_ticks, x_span, (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))))

    def place(self, x: float, y: float) -> Point:
        """Where a point lies."""
        across = LEFT + (RIGHT - LEFT) * (x - self.x_span[0]) / (self.x_span[1] - self.x_span[0])
        return across, BOTTOM - (BOTTOM - TOP) * (y - self.y_span[0]) / ((self.y_span[1] - self.y_span[0]) or 1.0)

    def grid(self) -> Markup:
        """Lines and numbers."""
        parts = []
        for value in self.y_ticks:
            y = self.place(self.x_span[0], value)[1]
            parts.append(
                Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(LEFT, RIGHT, y)
                + Markup('<text class="tick end" x="{}" y="{:.1f}">{:g}</text>').format(LEFT - 6, y + 4, value)
            )
        for value in self.x_ticks:
            x = self.place(value, self.y_span[0])[0]
            parts.append(Markup('<text class="tick mid" x="{:.1f}" y="{}">{:g}</text>').format(x, BOTTOM + 18, value))
        return Markup("").join(parts)


def framed(inside: Markup, colour: str, label: str) -> Markup:
    """A chart of lines with what was drawn into its frame."""
    return Markup('<svg class="curve {}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        colour, WIDTH, HEIGHT, label, inside
    )


def curve(series: Mapping[str, Sequence[Sequence[float]]], colour: str, label: str) -> Markup:
    """One quantity over the steps, a line a split; `series` maps "train" and "held_out" to [[step, value], ...]."""
    there = [point for line in series.values() for point in line]
    frame = Frame.around([p[0] for p in there], [p[1] for p in there])
    parts = [frame.grid()]
    for split, line in series.items():
        places = [frame.place(step, value) for step, value in line]
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(split, points(places)))
        if split != "train" and len(places) <= MOST_DOTS:
            parts.append(corner_dots(places))
    return framed(Markup("").join(parts), colour, label)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values that lie evenly from about `low` to about `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] or [low]


def diverging(value: float, far: float) -> Markup:
    """A bar to the right of the middle for more, to the left for less; `far` fills half of its cell."""
    share = 50 * min(1.0, abs(value) / far) if far else 0.0
    side = "more" if value > 0 else "less"
    return Markup(
        '<svg class="diverging" aria-hidden="true"><line class="zero" x1="50%" x2="50%" y1="0" y2="100%"/>'
        '<rect class="{}" x="{:.2f}%" y="25%" width="{:.2f}%" height="50%" rx="2"/></svg>'
    ).format(side, 50.0 if value > 0 else 50.0 - share, share)
