"""What an audit comes to: of each danger a verdict a model, a plain sentence, a table, a plot and what it rests on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from potstill.evaluation.audits.hypotheses import Hypothesis, Share, ends_of, holm, questions_of, refuted
from potstill.evaluation.statistics import Estimate, Evidence

Verdict = Literal["flagged", "clean", "cannot tell", "not measured"]
FLAGGED: Verdict = "flagged"
CLEAN: Verdict = "clean"
UNCLEAR: Verdict = "cannot tell"
UNMEASURED: Verdict = "not measured"


@dataclass(frozen=True)
class Figure:
    """A number with its 95% interval. Without one it is a count, or a value that was read as it stands."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    share: bool = False
    """People read it in percent."""


Cell = str | Figure


TOO_FEW = "too few questions"


def figure(found: Evidence | None) -> Cell:
    """What was found as a cell; in words where so few questions stand behind it that it has no interval."""
    if found is None:
        return Figure(None)
    low, high = ends_of(found)
    return TOO_FEW if low is None else Figure(found.mean, low, high, questions_of(found))


def estimate_figure(share: Estimate, questions: int) -> Cell:
    """An estimated share as a cell; of nothing there is none."""
    if share.mean is None:
        return Figure(None)
    return TOO_FEW if share.low is None else Figure(share.mean, share.low, share.high, questions, True)


def share_figure(share: Share) -> Figure:
    """A share as a cell; of nothing there is none."""
    return Figure(share.mean, *share.ends(), share.of, True) if share.of else Figure(None)


@dataclass(frozen=True)
class Point:
    """One place of a plot, with its interval where there is one."""

    at: float | str
    mean: float
    low: float | None = None
    high: float | None = None


def point(at: float | str, found: Evidence) -> Point:
    """What was found as a place of a plot."""
    return Point(at, found.mean, *ends_of(found))


@dataclass(frozen=True)
class Series:
    """Points that belong together. Those at numbers make a line, those at words stand in rows."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Plot:
    """What is drawn of a danger."""

    across: str = ""
    """What the points' places are."""
    up: str = ""
    """What their values are."""
    series: tuple[Series, ...] = ()
    zero: float | None = None
    """Where a line says that nothing is wrong."""


@dataclass(frozen=True)
class Danger:
    """What one kind of audit found, before it is corrected for all that was asked."""

    name: str
    title: str
    question: str
    """What was tested, in a sentence."""
    source: str
    """The paper that it goes back to."""
    thresholds: Mapping[str, float]
    hypotheses: tuple[Hypothesis, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    plot: Plot = field(default_factory=Plot)
    missing: Mapping[str, str] = field(default_factory=dict)
    """By model: why it could not be measured, and what that needs."""
    notes: tuple[str, ...] = ()
    """Examples, and what else a reader has to know."""


def unmeasured(danger: Danger, models: Iterable[str], why: str) -> Danger:
    """The danger where nothing at hand can tell of it."""
    return replace(danger, missing=dict.fromkeys(models, why))


def conclude(dangers: Sequence[Danger], models: Sequence[str]) -> dict[str, Any]:
    """audit.json: the dangers with their verdicts, corrected over all hypotheses of all dangers and models."""
    every = [one for danger in dangers for one in danger.hypotheses]
    corrected = iter(holm([one.p for one in every]))
    found = {}
    for danger in dangers:
        pairs = [(one, next(corrected)) for one in danger.hypotheses]
        found[danger.name] = _told(danger, pairs, models)
    return {"models": list(models), "hypotheses": sum(one.p is not None for one in every), "dangers": found}


def _told(danger: Danger, pairs: Sequence[tuple[Hypothesis, float | None]], models: Sequence[str]) -> dict[str, Any]:
    verdicts = {model: _verdict([pair for pair in pairs if pair[0].model == model]) for model in models}
    missing = {model: danger.missing.get(model, "") for model in models if verdicts[model] == UNMEASURED}
    return {
        "title": danger.title,
        "question": danger.question,
        "source": danger.source,
        "thresholds": dict(danger.thresholds),
        "verdicts": verdicts,
        "why": missing,
        "sentence": " ".join(_sentences(pairs, verdicts, missing)),
        "hypotheses": [{**asdict(one), "corrected_p": p, "refuted": refuted(p)} for one, p in pairs],
        "columns": list(danger.columns),
        "rows": [[cell if isinstance(cell, str) else asdict(cell) for cell in row] for row in danger.rows],
        "plot": asdict(danger.plot),
        "notes": list(danger.notes),
    }


def _verdict(pairs: Sequence[tuple[Hypothesis, float | None]]) -> Verdict:
    """Flagged where anything is refuted, clean where everything keeps to its margin."""
    if not pairs:
        return UNMEASURED
    if any(refuted(p) for _, p in pairs):
        return FLAGGED
    return CLEAN if all(one.within for one, _ in pairs) else UNCLEAR


def _sentences(
    pairs: Sequence[tuple[Hypothesis, float | None]], verdicts: Mapping[str, Verdict], missing: Mapping[str, str]
) -> Iterable[str]:
    for one, p in pairs:
        if refuted(p):
            yield f"{one.model} {one.claim}: {_numbers(one)}."
    for verdict, words in ((CLEAN, "No sign of it in {}."), (UNCLEAR, "Of {} it cannot be told.")):
        named = [model for model, found in verdicts.items() if found == verdict]
        if named:
            yield words.format(", ".join(named))
    for why in dict.fromkeys(missing.values()):
        yield f"Not measured for {', '.join(model for model in missing if missing[model] == why)}: {why}."


def _numbers(one: Hypothesis) -> str:
    """An effect beside its interval and its margin."""
    assert one.mean is not None
    unit = f" {one.unit}" if one.unit else ""
    if one.low == one.high:
        return f"{one.mean:.3g}{unit}, where {one.margin:.2g} is the most that counts for nothing"
    words = f"{one.mean:+.3g}{unit} (95% interval {one.low:+.3g} to {one.high:+.3g}, n {one.n})"
    return f"{words}, where {one.margin:.2g} counts for nothing".replace("-", "−")


def flagged(audit: Mapping[str, Any]) -> dict[str, list[str]]:
    """By danger: the models that it was found in."""
    verdicts = {name: danger["verdicts"] for name, danger in audit["dangers"].items()}
    return {
        name: [model for model, verdict in found.items() if verdict == FLAGGED]
        for name, found in verdicts.items()
        if FLAGGED in found.values()
    }
