"""Two models set against each other: their differences on the same questions, and whether what is required holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import DataError, StorageError
from potstill.evaluation.distributions import LEVEL
from potstill.evaluation.gate import (
    EXIT_CODES,
    Compared,
    Requirement,
    Side,
    check,
    compared,
    outcome,
)
from potstill.evaluation.requirements import read_clauses, resolve
from potstill.evaluation.scores import SCORES_FILE, SuiteResult
from potstill.evaluation.statistics import Difference, corrected, difference_of
from potstill.members import pools, seeds
from potstill.reporting.differences import verdict_of
from potstill.results import read_results
from potstill.validation import nearest
from potstill.workspace import Workspace, open_run

WHERE = "command line, --require"


@dataclass(frozen=True)
class Scored:
    """One model, or a family of them, with every suite that it was scored on."""

    label: str
    suites: Mapping[str, Side]


def compare(before: str, after: str, require: str = "", level: float = 1 - LEVEL) -> dict[str, Any]:
    """Everything that `potstill compare --json` prints. DataError where the two cannot be compared.

    `before`, `after`: RUN, RUN:MODEL, RUN:STAGE:MODEL, or a file or folder of scores, perhaps with :MODEL.
    `level`: of the one-sided tests of requirements.
    """
    clauses = read_clauses(require, WHERE) if require else []
    sides = read_side(before), read_side(after)
    requirements = [resolve(clause, (sides[0].suites, sides[1].suites), WHERE) for clause in clauses]
    common = [name for name in sides[0].suites if name in sides[1].suites]
    if not common:
        had = [", ".join(side.suites) for side in sides]
        what = f"no suite is in both: {sides[0].label} has {had[0]}; {sides[1].label} has {had[1]}"
        raise DataError("compare", what, "Name two that were scored on the same suite")
    shown = {name: (sides[0].suites[name], sides[1].suites[name]) for name in common}
    if requirements:
        shown = {one.suite: shown[one.suite] for one in requirements}
    unlike = {name: why for name, both in shown.items() if (why := _unlike(sides, *both))}
    if unlike.keys() >= shown.keys() or (requirements and unlike):
        name, (what, remedy) = next(iter(unlike.items()))
        raise DataError(f"suite '{name}'", what, remedy)
    pairs = {name: compared(*both) for name, both in shown.items() if name not in unlike}
    checks = check([(one, _of(one, shown, pairs)) for one in requirements], level)
    return {
        "before": sides[0].label,
        "after": sides[1].label,
        "level": level,
        "suites": _suites({name: shown[name] for name in pairs}, pairs),
        "only_before": [name for name in sides[0].suites if name not in common],
        "only_after": [name for name in sides[1].suites if name not in common],
        "not_compared": {name: what for name, (what, _) in unlike.items()},
        "requirements": [one.to_json() for one in checks],
        "verdict": outcome(checks) if checks else None,
        "exit_code": EXIT_CODES[outcome(checks)] if checks else 0,
    }


def _of(one: Requirement, shown: Mapping[str, tuple[Side, Side]], pairs: Mapping[str, Compared]) -> Compared:
    before, after = shown[one.suite]
    return compared(before.within(one.category), after.within(one.category)) if one.category else pairs[one.suite]


def _asked(side: Side) -> set[tuple[str, str]]:
    return {(row.question, row.part) for rows in side.members.values() for row in rows}


def _unlike(sides: tuple[Scored, Scored], before: Side, after: Side) -> tuple[str, str] | None:
    """Why the two are no measurements of one thing, and what to do; None where they are."""
    if before.measure != after.measure:
        what = f"it is measured otherwise in {sides[0].label} ({_measure(before)}) and {sides[1].label}"
        return f"{what} ({_measure(after)})", "Compare two evaluations of one protocol"
    if _asked(before) & _asked(after):
        return None
    ids = [next((row.question for rows in one.members.values() for row in rows), "none") for one in (before, after)]
    what = (
        f"{sides[0].label} and {sides[1].label} were asked other questions (first '{ids[0]}' and '{ids[1]}'), "
        "and differences are taken question by question"
    )
    return what, "Compare two that were asked the same questions"


def _measure(side: Side) -> str:
    low, high = side.measure.scale
    return f"{side.measure.protocol}, {low:g} to {'any' if high is None else f'{high:g}'} {side.measure.unit}".strip()


def _suites(shown: Mapping[str, tuple[Side, Side]], pairs: Mapping[str, Compared]) -> dict[str, Any]:
    """Two-sided, after minus before, each p corrected for the number of suites."""
    differences: dict[str, Difference] = {}
    for name, what in pairs.items():
        found = difference_of(None if what.found is None else what.found.mean, what.found, what.n)
        differences[name] = found if shown[name][1].measure.higher_is_better else _turned(found)
    differences = corrected(differences)
    return {
        name: {
            "unit": after.measure.unit,
            "share": after.measure.is_share,
            "higher_is_better": after.measure.higher_is_better,
            "before": before.measure.estimate(before.observations).to_json(),
            "after": after.measure.estimate(after.observations).to_json(),
            "difference": differences[name].to_json()
            | {"questions": pairs[name].questions, "coverage": pairs[name].coverage, "seeds": pairs[name].over_seeds},
            "verdict": verdict_of(differences[name].to_json(), after.measure.higher_is_better),
        }
        for name, (before, after) in shown.items()
    }


def _turned(one: Difference) -> Difference:
    mean, low, high = (None if end is None else -end for end in (one.mean, one.high, one.low))
    return Difference(mean, low, high, one.n, one.p)


def read_side(text: str) -> Scored:
    """A model's scores. DataError where the text names nothing, or one of several."""
    path = Path(text)
    if path.exists():
        return _scored(text, path, "")
    place, _, rest = text.partition(":")
    stage, _, model = rest.rpartition(":")
    if not rest and not Path("runs", text).exists() and path.suffix:
        raise StorageError(text, "it is not there", "Name a run, or a file or folder of scores")
    path = Path(place) if Path(place).exists() else open_run(place).path
    if not stage:
        return _scored(text, path, model)
    workspace = open_run(place)
    asked = workspace.describe().stages
    scored = [name for name, one in asked.items() if one.produces == "scores"]
    artifact = workspace.latest(stage) if stage in scored else None
    if artifact is None:
        what = f"this run has no sealed scores called '{stage}'{nearest(stage, scored)}"
        raise DataError(text, what, f"It has: {', '.join(scored) or 'none'}")
    return _scored(text, artifact.path, model)


def _scored(text: str, path: Path, model: str) -> Scored:
    results = read_results(path)
    known = list(dict.fromkeys(pool for result in results.values() for pool in pools(result.observations)))
    rows = list(dict.fromkeys(name for result in results.values() for name in result.observations))
    if model and model not in (*known, *rows):
        raise DataError(
            text, f"no model is called '{model}'{nearest(model, known)}", f"Name one of: {', '.join(known)}"
        )
    own = path.is_dir() and (Workspace(path).has_run() or (path / SCORES_FILE).is_file())
    if not model and len(known) > 1 and not own:
        raise DataError(text, f"it holds {len(known)} models", f"Name one of them: {text}:{known[-1]}")
    meant = model or list(pools(next(iter(results.values())).observations))[-1]  # the last that was made
    suites = {name: Side(result.measure, _members(result, meant)) for name, result in results.items()}
    label = text if model or len(known) == 1 else f"{text}:{meant}"
    return Scored(label, {name: side for name, side in suites.items() if side.members})


def _members(result: SuiteResult, meant: str) -> dict[str, Any]:
    if meant in result.observations:
        return {"": result.observations[meant]}
    names: Sequence[str] = pools(result.observations).get(meant, [])
    return {seeds([name])[0]: result.observations[name] for name in names}
