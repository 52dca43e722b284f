"""Two models set against each other: their differences on the same questions, and whether what is required holds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.artifact import MANIFEST, read_json
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
from potstill.evaluation.requirements import Clause, read_clauses, resolve
from potstill.evaluation.scores import SCORES_FILE
from potstill.evaluation.seed_pools import family_row
from potstill.evaluation.statistics import Difference, Observation, corrected, difference_of
from potstill.evaluation.terms import Terms, remarks, unlike
from potstill.members import pooled_name, pools, seeds
from potstill.reporting.differences import verdict_of
from potstill.runs.workspace import Workspace, open_run
from potstill.scoring.results import Results, read_suites
from potstill.validation import nearest

WHERE = "command line, --require"


@dataclass(frozen=True)
class Scored:
    """One model, or a family of them, with every suite that it was scored on."""

    label: str
    suites: Mapping[str, Side]
    sources: Mapping[str, Sequence[Results]]
    """Where each suite is from: several for a family whose members were scored one by one."""
    doubled: Mapping[str, tuple[str, str]]
    """Suites in which it was scored more than once: that, and how to name one of them."""
    baseline_of: Collection[str]
    """Suites that compare others with it, in which it has no row."""


def compare(before: str, after: str, require: str | None = None, level: float = 1 - LEVEL) -> dict[str, Any]:
    """Everything that `potstill compare --json` prints. DataError where the two cannot be compared.

    `before`, `after`: RUN, RUN:MODEL, RUN:STAGE:MODEL, or a file or folder of scores, perhaps with :MODEL.
    `level`: of the one-sided tests of requirements.
    """
    clauses = [] if require is None else read_clauses(require, WHERE)
    sides = read_side(before), read_side(after)
    for clause in clauses:
        _refuse_baseline(clause, sides)
    requirements = [resolve(clause, (sides[0].suites, sides[1].suites), WHERE) for clause in clauses]
    common = [name for name in sides[0].suites if name in sides[1].suites]
    if not common:
        had = [", ".join(side.suites) for side in sides]
        what = f"no suite is in both: {sides[0].label} has {had[0]}; {sides[1].label} has {had[1]}"
        raise DataError("compare", what, "Name two that were scored on the same suite")
    shown = {name: (sides[0].suites[name], sides[1].suites[name]) for name in common}
    if requirements:
        shown = {one.suite: shown[one.suite] for one in requirements}
    refused = {name: why for name in shown if (why := _unlike(sides, name))}
    if refused.keys() >= shown.keys() or (requirements and refused):
        name, (what, remedy) = next(iter(refused.items()))
        raise DataError(f"suite '{name}'", what, remedy)
    pairs = {name: compared(*both) for name, both in shown.items() if name not in refused}
    checks = check([(one, _of(one, shown, pairs)) for one in requirements], level)
    return {
        "before": sides[0].label,
        "after": sides[1].label,
        "level": level,
        "suites": _suites({name: shown[name] for name in pairs}, pairs),
        "only_before": [name for name in sides[0].suites if name not in common],
        "only_after": [name for name in sides[1].suites if name not in common],
        "not_compared": {name: what for name, (what, _) in refused.items()},
        "notes": _notes(sides, pairs),
        "requirements": [one.to_json() for one in checks],
        "verdict": outcome(checks) if checks else None,
        "exit_code": EXIT_CODES[outcome(checks)] if checks else 0,
    }


def _of(one: Requirement, shown: Mapping[str, tuple[Side, Side]], pairs: Mapping[str, Compared]) -> Compared:
    before, after = shown[one.suite]
    return compared(before.within(one.category), after.within(one.category)) if one.category else pairs[one.suite]


def _refuse_baseline(clause: Clause, sides: tuple[Scored, Scored]) -> None:
    """DataError where a side is what everybody else is compared with in the suite that is required."""
    for side in sides:
        suite = next((one for one in side.baseline_of if clause.name == one or clause.name.startswith(f"{one}/")), None)
        if suite is not None:
            what = (
                f"{side.label} is the baseline of suite '{suite}': it has no row there, and the win rates of the "
                "others are themselves against it"
            )
            remedy = "Read them in the report or by 'potstill score', or name two models that are not the baseline"
            raise DataError(f"{WHERE}, character {clause.place}", what, remedy)


def _asked(side: Side) -> dict[tuple[str, str], None]:
    return {(row.question, row.part): None for rows in side.members.values() for row in rows}


def _unlike(sides: tuple[Scored, Scored], name: str) -> tuple[str, str] | None:
    """Why the two are no measurements of one thing, and what to do; None where they are."""
    before, after = (side.suites[name] for side in sides)
    doubled = next((side.doubled[name] for side in sides if name in side.doubled), None)
    if doubled:
        return doubled
    if before.measure != after.measure:
        what = f"it is measured otherwise in {sides[0].label} ({_measure(before)}) and {sides[1].label}"
        return f"{what} ({_measure(after)})", "Compare two evaluations of one protocol"
    asked = _asked(before), _asked(after)
    common = list(dict.fromkeys(question for question, part in asked[0] if (question, part) in asked[1]))
    if not common:
        ids = [next((question for question, _ in one), "none") for one in asked]
        what = (
            f"{sides[0].label} and {sides[1].label} were asked other questions (first '{ids[0]}' and '{ids[1]}'), "
            "and differences are taken question by question"
        )
        return what, "Compare two that were asked the same questions"
    return next(
        (why for one, other in _sources(sides, name) if (why := unlike(_labels(sides), one, other, common))), None
    )


def _labels(sides: tuple[Scored, Scored]) -> tuple[str, str]:
    return sides[0].label, sides[1].label


def _sources(sides: tuple[Scored, Scored], name: str) -> list[tuple[Terms, Terms]]:
    """The terms of every two that are set against each other."""
    return [(one.terms, other.terms) for one in sides[0].sources[name] for other in sides[1].sources[name]]


def _notes(sides: tuple[Scored, Scored], names: Collection[str]) -> list[str]:
    """What differs between suites that are compared all the same, each once."""
    found: dict[str, dict[str, None]] = {}
    for name in names:
        for one, other in _sources(sides, name):
            for remark in remarks(_labels(sides), one, other):
                found.setdefault(remark, {})[name] = None
    return [f"{', '.join(suites)}: {remark}" for remark, suites in found.items()]


def _measure(side: Side) -> str:
    low, high = side.measure.scale
    return f"{side.measure.protocol}, {low:g} to {'any' if high is None else f'{high:g}'} {side.measure.unit}".strip()


def _suites(shown: Mapping[str, tuple[Side, Side]], pairs: Mapping[str, Compared]) -> dict[str, Any]:
    """Two-sided, after minus before, each p corrected for the number of suites."""
    differences: dict[str, Difference] = {}
    for name, what in pairs.items():
        found = difference_of(None if what.found is None else what.found.mean, what.found, what.n, what.why)
        differences[name] = found if shown[name][1].measure.higher_is_better else _turned(found)
    differences = corrected(differences)
    return {
        name: {
            "unit": after.measure.unit,
            "share": after.measure.is_share,
            "higher_is_better": after.measure.higher_is_better,
            "before": family_row(before.measure, before.members),
            "after": family_row(after.measure, after.members),
            "difference": differences[name].to_json()
            | {"questions": pairs[name].questions, "coverage": pairs[name].coverage, "seeds": pairs[name].over_seeds}
            | {"only_before": pairs[name].only_before, "only_after": pairs[name].only_after},
            "verdict": verdict_of(differences[name].to_json(), after.measure.higher_is_better),
        }
        for name, (before, after) in shown.items()
    }


def _turned(one: Difference) -> Difference:
    mean, low, high = (None if end is None else -end for end in (one.mean, one.high, one.low))
    return replace(one, mean=mean, low=low, high=high)


def read_side(text: str) -> Scored:
    """A model's scores. DataError where the text names nothing, or one of several."""
    if not text.strip():
        raise DataError("compare", "the name of a side is empty", "Name a run, or a file or folder of scores")
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
    artifact = workspace.sealed()[stage] if stage in scored else None
    if artifact is None:
        what = f"this run has no sealed scores called '{stage}'{nearest(stage, scored)}"
        raise DataError(text, what, f"It has: {', '.join(scored) or 'none'}")
    return _scored(text, artifact.path, model)


def _scored(text: str, path: Path, model: str) -> Scored:
    suites = read_suites(path)
    rows = {suite: _rows(results) for suite, results in suites.items()}
    known = list(dict.fromkeys(pool for found in rows.values() for pool in pools(found)))
    if model and model not in known and not any(model in found for found in rows.values()):
        raise DataError(
            text, f"no model is called '{model}'{nearest(model, known)}", f"Name one of: {', '.join(known)}"
        )
    run = text.removesuffix(f":{model}") if path.is_dir() and Workspace(path).has_run() else ""
    own = run or (path / SCORES_FILE).is_file()
    if not model and len(known) > 1 and not own:
        raise DataError(text, f"it holds {len(known)} models", f"Name one of them: {text}:{known[-1]}")
    meant = model or list(pools(next(iter(rows.values()))))[-1]  # the last that was made
    sides, sources, doubled = {}, {}, {}
    for suite, results in suites.items():
        names = [meant] if meant in rows[suite] else pools(rows[suite]).get(meant, [])
        if not names:
            continue
        sources[suite] = [one for one in results if one.result.observations.keys() & set(names)]
        sides[suite] = Side(sources[suite][0].result.measure, _members(rows[suite], names, meant))
        if any(len(rows[suite][name]) > 1 for name in names):
            doubled[suite] = _doubled(run, suite, meant, sources[suite])
    label = text if model or len(known) == 1 else f"{text}:{meant}"
    baseline_of = [name for name, results in suites.items() if name not in sides and _is_baseline(meant, results)]
    return Scored(label, sides, sources, doubled, baseline_of)


def _rows(results: Sequence[Results]) -> dict[str, list[Sequence[Observation]]]:
    """By row name, what each file or stage has of it."""
    found: dict[str, list[Sequence[Observation]]] = {}
    for one in results:
        for name, rows in one.result.observations.items():
            found.setdefault(name, []).append(rows)
    return found


def _members(rows: Mapping[str, list[Sequence[Observation]]], names: Sequence[str], meant: str) -> dict[str, Any]:
    return {"" if name == meant else seeds([name])[0]: rows[name][0] for name in names}


def _doubled(run: str, suite: str, name: str, sources: Sequence[Results]) -> tuple[str, str]:
    """What to say of a model that several files, or stages of a run, have scored on one suite."""
    if run:
        stages = [read_json(one.path / MANIFEST)["stage"] for one in sources]
        what = f"'{name}' is scored in more than one stage ({', '.join(stages)}) for {suite}"
        return what, f"Name the stage: {' or '.join(f'{run}:{stage}:{name}' for stage in stages)}"
    files = " or ".join(f"{one.path}:{name}" for one in sources)
    return f"'{name}' is scored in more than one file for {suite}", f"Name the one that is meant: {files}"


def _is_baseline(name: str, results: Sequence[Results]) -> bool:
    parties = [one.terms.baseline for one in results]
    return any(party and name in (party.name, pooled_name(party.name)) for party in parties)
