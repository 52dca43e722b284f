"""The graph of stages as SVG: layers from top to bottom, edges bent around what stands between.

Layers by longest path, sources moved down to their first reader; order in a layer by the mean place of neighbours
(Sugiyama, Tagawa and Toda 1981); an edge over several layers has a place of its own in each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from potstill.units import duration

WIDTH, HEIGHT, GAP, DROP = 188.0, 58.0, 26.0, 46.0
THIN = 14.0
"""What an edge that passes a layer takes of it."""
SWEEPS = 12
LONGEST_NAME, LONGEST_LINE = 22, 30
GLYPHS = {"sealed": "✓", "running": "▶", "waiting": "○", "failed": "✕", "damaged": "!", "stopped": "❙❙"}
WORDS = {
    "sealed": "sealed", "running": "runs now", "waiting": "waits", "failed": "did not finish", "damaged": "damaged",
    "stopped": "was stopped",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """What is drawn of a stage."""

    name: str
    state: str
    lines: Sequence[str]
    """Below its name."""
    share: float | None = None
    """Of the one that runs: how far it is."""
    several: bool = False


Step = tuple[str, str, int]
"""A place that an edge takes in a layer that it passes."""
Place = str | Step


def draw(nodes: Mapping[str, Node], reads: Mapping[str, Sequence[str]], href: Callable[[str], str]) -> Markup:
    """The graph; each node leads to `href(name)`. Empty where there are no nodes."""
    if not nodes:
        return Markup("")
    layers, edges = _layout(_needed({name: [one for one in reads[name] if one in nodes] for name in nodes}))
    at = _places(layers)
    width = max(x + _width(place) for place, (x, _) in at.items()) + 2
    height = len(layers) * (HEIGHT + DROP) - DROP + 4
    parts = [Markup('<path class="edge" d="{}"/>').format(_bend([at[p] for p in path], path)) for path in edges]
    parts += [_box(node, *at[name], href(name)) for name, node in nodes.items()]
    return Markup(
        '<svg class="graph" viewBox="0 0 {0:g} {1:g}" width="{0:g}" height="{1:g}" role="group" '
        'aria-label="Stages and what they read">{2}</svg>'
    ).format(width, height, Markup("").join(parts))


def _needed(reads: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Without what is read by way of another source too: the longer way says it."""
    above: dict[str, set[str]] = {}
    for name, sources in reads.items():  # in the order in which they run: what is read comes first
        above[name] = set(sources).union(*(above.get(one, set()) for one in sources))
    return {
        name: [one for one in sources if not any(one in above.get(other, set()) for other in sources)]
        for name, sources in reads.items()
    }


def _depths(reads: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for name in reads:  # in the order in which they run: what is read comes first
        depth[name] = max((depth[one] + 1 for one in reads[name] if one in depth), default=0)
    for name in reads:
        readers = [depth[one] for one, sources in reads.items() if name in sources]
        if not reads[name] and readers:
            depth[name] = max(0, min(readers) - 1)
    return depth


def _layout(reads: Mapping[str, Sequence[str]]) -> tuple[list[list[Place]], list[list[Place]]]:
    """The places of each layer in their order, and the edges as the places they pass."""
    depth = _depths(reads)
    layers: list[list[Place]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in reads:
        layers[depth[name]].append(name)
    edges: list[list[Place]] = []
    for name, sources in reads.items():
        for source in sources:
            if depth[source] >= depth[name]:
                continue
            path: list[Place] = [source, *((source, name, d) for d in range(depth[source] + 1, depth[name])), name]
            for d, place in enumerate(path[1:-1], depth[source] + 1):
                layers[d].append(place)
            edges.append(path)
    _sort(layers, edges)
    return layers, edges


def _sort(layers: list[list[Place]], edges: Sequence[Sequence[Place]]) -> None:
    """Sweep down and up; every place moves to the mean of its neighbours' places."""
    above: dict[Place, list[Place]] = {}
    below: dict[Place, list[Place]] = {}
    for path in edges:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
            below.setdefault(upper, []).append(lower)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        at = _centres(layers)
        neighbours = above if downwards else below
        for layer in layers if downwards else reversed(layers):
            layer.sort(key=lambda place: _mean([at[one] for one in neighbours.get(place, ())], at[place]))
            at |= _centres([layer])


def _mean(values: Sequence[float], other: float) -> float:
    return sum(values) / len(values) if values else other


def _width(place: Place) -> float:
    return WIDTH if isinstance(place, str) else THIN


def _centres(layers: Sequence[Sequence[Place]]) -> dict[Place, float]:
    """Each place's middle, a layer centred around 0."""
    found: dict[Place, float] = {}
    for layer in layers:
        x = -(sum(map(_width, layer)) + GAP * (len(layer) - 1)) / 2
        for place in layer:
            found[place] = x + _width(place) / 2
            x += _width(place) + GAP
    return found


def _places(layers: Sequence[Sequence[Place]]) -> dict[Place, tuple[float, float]]:
    """The left upper corner of each."""
    centres = _centres(layers)
    left = min(centre - _width(place) / 2 for place, centre in centres.items())
    return {
        place: (centres[place] - _width(place) / 2 - left + 2, depth * (HEIGHT + DROP) + 2)
        for depth, layer in enumerate(layers)
        for place in layer
    }


def _bend(corners: Sequence[tuple[float, float]], path: Sequence[Place]) -> str:
    """From the foot of the first place, straight through those between, to the head of the last."""
    middles = [(x + _width(place) / 2, y) for place, (x, y) in zip(path, corners, strict=True)]
    (x, y), parts = middles[0], []
    y += HEIGHT
    parts.append(f"M{x:.1f} {y:.1f}")
    for place, (to_x, to_y) in zip(path[1:], middles[1:], strict=True):
        half = (to_y - y) / 2
        parts.append(f"C{x:.1f} {y + half:.1f} {to_x:.1f} {to_y - half:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
        if not isinstance(place, str):
            y += HEIGHT
            parts.append(f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _box(node: Node, x: float, y: float, href: str) -> Markup:
    parts = []
    if node.several:
        parts.append(Markup('<rect class="behind" x="{}" y="{}" width="{}" height="{}" rx="7"/>').format(
            x + 4, y + 4, WIDTH, HEIGHT - 2))  # fmt: skip
    parts.append(Markup('<rect class="box" x="{}" y="{}" width="{}" height="{}" rx="7"/>').format(x, y, WIDTH, HEIGHT))
    parts.append(Markup('<text class="glyph" x="{}" y="{}">{}</text>').format(x + 12, y + 21, GLYPHS[node.state]))
    parts.append(
        Markup('<text class="name" x="{}" y="{}">{}</text>').format(x + 30, y + 21, cut(node.name, LONGEST_NAME))
    )
    for place, line in enumerate(node.lines[:2]):
        parts.append(Markup('<text class="line-{}" x="{}" y="{}">{}</text>').format(
            place, x + 30, y + 37 + 14 * place, cut(line, LONGEST_LINE)))  # fmt: skip
    if node.share is not None:
        for css, part in (("track", 1.0), ("part", max(0.02, node.share))):
            parts.append(Markup('<rect class="{}" x="{}" y="{}" width="{:.1f}" height="3" rx="1.5"/>').format(
                css, x + 10, y + HEIGHT - 6, (WIDTH - 20) * part))  # fmt: skip
    title = Markup("<title>{}, {}: {}</title>").format(node.name, WORDS[node.state], ", ".join(node.lines))
    return Markup('<a class="node {}" href="{}">{}{}</a>').format(node.state, href, title, Markup("").join(parts))


def cut(text: str, longest: int) -> str:
    """A text with its end left out where it is too long for its place."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def node_of(stage: Any) -> Node:
    """What is drawn of a stage, or of a family, of a survey."""
    return Node(stage.name, stage.state, _lines(stage), _share(stage), bool(stage.members))


def _share(stage: Any) -> float | None:
    return None if stage.progress is None else stage.progress.share


def _lines(stage: Any) -> list[str]:
    first = [stage.kind.rpartition(":")[2].rpartition("/")[2]]
    if stage.members:
        first.append(f"{stage.sealed_members} of {len(stage.members)}")
    if stage.rows is not None:
        first.append(f"{stage.rows:,} rows")
    second = [] if stage.state == "sealed" else [WORDS[stage.state]]
    if stage.progress is not None and stage.progress.doing:
        second = [stage.progress.doing]
    elif stage.progress is not None and stage.progress.unit:
        of = f"/{stage.progress.total:,}" if stage.progress.total else ""
        second = [f"{stage.progress.done:,}{of} {stage.progress.unit}"]
    if stage.seconds is not None:
        second.append(duration(stage.seconds))
    if stage.spent.usd:
        second.append(f"${stage.spent.usd:,.2f}")
    elif stage.spent.calls:
        second.append(f"{stage.spent.calls:,} replies")
    return [" · ".join(first), " · ".join(second)]
