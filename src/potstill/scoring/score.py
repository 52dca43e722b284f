"""What `potstill score` finds: published numbers anew from stored annotations and judgments. No model, no network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from potstill.errors import DataError
from potstill.evaluation import alpaca_eval, fastchat_scores
from potstill.evaluation.alpaca_eval import Annotation, Published
from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.fastchat import Judgment, PairJudgment
from potstill.evaluation.spread import Value, spread_over_questions
from potstill.evaluation.statistics import LEAST_SCORED, Estimate, Observation
from potstill.evaluation.stored import is_repeat
from potstill.scoring.material import Material, annotator_of, gather
from potstill.scoring.results import KNOWN, Results

if TYPE_CHECKING:
    from potstill.evaluation.length_control import Controlled, Difficulty, Fit, Weights

ENOUGH = 0.9
"""Coverage below which a mean is of what could be scored, and not of what was asked."""
EQUAL = 1e-6
"""Percent: a rate at equal length that differs by more is not the published one."""
EVEN = 50.0
"""Percent that a baseline wins against itself."""
SHOWN = 3
"""How many examples a warning names."""


def score(
    paths: Sequence[Path], weights: Path | None = None, difficulty: Path | None = None, baseline: str | None = None
) -> dict[str, Any]:
    """Every figure of what the paths hold, as `--json` prints it.

    `baseline`: of judgments of pairs and of annotations only those against this model. DataError where nothing is
    found, or a file cannot be what it seems.
    """
    material = gather(paths, weights, difficulty)
    material.baseline = baseline
    if baseline is not None:
        material.results = [found for one in material.results if (found := _against(one, baseline)) is not None]
    if not material.results and not material.boards:
        against = f" against '{baseline}'" if baseline else ""
        where = ", ".join(map(str, paths))
        what = f"nothing here was scored{against}; expected {KNOWN}, or a leaderboard of AlpacaEval"
        raise DataError(where, what, "Name another file or folder")
    return {
        "results": [_result(one, material) for one in material.results],
        "leaderboards": [_board(path, material) for path in material.boards],
        "weights": _text(material.weights_from),
        "difficulty": _text(material.difficulty_from),
        "skipped": material.skipped,
    }


def _against(one: Results, baseline: str) -> Results | None:
    """The results against that model; of other suites, where there is none, all."""
    rows = [row for found in one.rows.values() for row in found]
    if not rows or isinstance(rows[0], Judgment):
        return one
    if isinstance(rows[0], Annotation):
        return one if one.baseline == baseline else None
    # A row of two models stands under both.
    pairs = list({id(row): row for row in rows if isinstance(row, PairJudgment)}.values())
    category = {row.question: row.category for found in one.result.observations.values() for row in found}
    observations = fastchat_scores.pair_observations(pairs, category, baseline)
    if not observations:
        return None
    models = {name: one.rows.get(name, ()) for name in observations}
    return replace(one, baseline=baseline, rows=models, result=replace(one.result, observations=observations))


# Results.


def _result(one: Results, material: Material) -> dict[str, Any]:
    found = one.result.to_json()
    by_ids = one.rows and not one.questions and one.suite != alpaca_eval.WIN_RATE.protocol
    categories = "the ids of MT-Bench's own questions" if by_ids else _text(one.questions)
    head = {"file": str(one.path), "suite": one.suite, "judge": one.judge or None, "baseline": one.baseline}
    models = {name: _told(found["models"][name]) | _model(one, name, material) for name in one.result.observations}
    found["categories"] = {
        category: {name: _told(estimate) for name, estimate in rows.items()}
        for category, rows in found["categories"].items()
    }
    return {**head, "categories_from": categories, **found, "models": models}


def _told(estimate: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate; where too little was scored, without a mean, and with what was scored beside it."""
    if estimate["mean"] is None or estimate["coverage"] >= LEAST_SCORED:
        return {**estimate, "of_those_scored": None}
    ends = {part: estimate[part] for part in ("mean", "low", "high")}
    return {**estimate, **dict.fromkeys(ends), "of_those_scored": ends}


def _model(one: Results, name: str, material: Material) -> dict[str, Any]:
    """What stands beside a model's mean."""
    rows = one.result.observations[name]
    values = [row for row in rows if row.value is not None]
    parts = sorted({row.part for row in rows if not is_repeat(row.part)})
    first = [row for row in rows if not is_repeat(row.part)]
    stored = one.rows.get(name, ())
    found: dict[str, Any] = {
        "standard_error": _standard_error(rows) if len(values) >= LEAST_SCORED * len(rows) else None,
        "asked": len(rows),
        "failed": len(rows) - len(values),
        "questions": len({row.question for row in rows}),
        "repeated": len(rows) - len(first),
        "first_run": one.result.measure.estimate(first).to_json() if len(first) < len(rows) else None,
        "parts": _parts(one, rows, parts) if len(parts) > 1 else {},
        "unlike": _unlike(stored),
        "average_length": None,
        "alpaca_eval": None,
        "length_controlled": None,
        "published": None,
    }
    if one.rows and one.suite == alpaca_eval.WIN_RATE.protocol:
        found |= _alpaca(one, name, cast(Sequence[Annotation], stored), material)
    return {**found, "warnings": _warnings(one, name, found)}


def _parts(one: Results, rows: Sequence[Observation], parts: Sequence[str]) -> dict[str, Any]:
    """The mean of each turn, its repetitions among them."""
    groups = {part: [row for row in rows if row.part == part or row.part.startswith(f"{part} run ")] for part in parts}
    return {part: _told(one.result.measure.estimate(found).to_json()) for part, found in groups.items()}


def _standard_error(rows: Sequence[Observation]) -> float | None:
    """Of the mean, clustered by question, in the unit of the values."""
    spread = spread_over_questions(
        [Value(row.question, row.value, row.weight, stratum=row.stratum) for row in rows if row.value is not None]
    )
    return None if spread is None else spread.error


def _unlike(stored: Sequence[Any]) -> list[dict[str, Any]]:
    """The rows that are stored otherwise than the judge's words or probabilities say."""
    if stored and isinstance(stored[0], Annotation):
        return [
            {"question": " ".join(row.instruction.split())[:60], "turn": 1, "stored": row.preference, "said": said}
            for row, said in alpaca_eval.unlike(stored)
        ]
    return [one.to_json() for one in fastchat_scores.unlike(stored)]


def _alpaca(one: Results, name: str, rows: Sequence[Annotation], material: Material) -> dict[str, Any]:
    lengths = material.lengths.get(name) or [len(row.output_2) for row in rows if row.output_2 is not None]
    line = alpaca_eval.entry(rows, lengths)
    published = material.board(one.judge).get(name)
    return {
        "average_length": sum(lengths) / len(lengths) if lengths else None,
        "alpaca_eval": line.to_json(),
        "length_controlled": _length_controlled(one, name, rows, material, published),
        "published": asdict(published) if published else None,
    }


def _length_controlled(
    one: Results, name: str, rows: Sequence[Annotation], material: Material, published: Published | None
) -> dict[str, Any] | None:
    """The win rate at equal length: as published weights say, and fitted here. None without difficulties."""
    if material.difficulty is None:
        return None
    from potstill.evaluation import length_control

    fitted, why = None, ""
    try:
        fitted = length_control.fit(rows, material.difficulty, str(one.path))
    except DataError as error:
        why = str(error)
    weights = material.weights.get(name)
    fits = length_control.baseline_of(material.weights) == one.baseline
    by_weights = None
    if weights is not None and fits:
        values = material.difficulty.values[: len(rows)]
        by_weights = length_control.controlled(weights, values)
    known = by_weights.win_rate if by_weights else published.length_controlled_winrate if published else None
    rate = by_weights.win_rate if by_weights else fitted.controlled.win_rate if fitted else None
    return {
        "win_rate": rate,
        "from": "weights" if by_weights else "fit" if fitted else None,
        "by_weights": asdict(by_weights) if by_weights else None,
        "weights_left_out": weights is not None and not fits,
        "fit": _fit(fitted) if fitted else None,
        "fit_less_published": None if known is None or fitted is None else fitted.controlled.win_rate - known,
        "no_fit": why,
    }


def _fit(fitted: "Fit") -> dict[str, Any]:
    return {
        "win_rate": fitted.controlled.win_rate,
        "low": fitted.low,
        "high": fitted.high,
        "n": fitted.controlled.n,
        "weights": asdict(fitted.weights),
        "penalty": None if fitted.strength is None else 1 / fitted.strength,
        "difficulty_by": fitted.by,
    }


# Leaderboards.


def _board(path: Path, material: Material) -> dict[str, Any]:
    board = material.boards[path]
    against, why = _board_baseline(board, material)
    lines = {name: _line(row, material, against) for name, row in board.items()}
    return {
        "file": str(path),
        "annotator": annotator_of(path),
        "weights_against": against,
        "weights_left_out": why,
        "models": lines,
    }


def _board_baseline(board: Mapping[str, Published], material: Material) -> tuple[str | None, str]:
    """Whom the weights set a leaderboard's models against; None where they do not apply, and why."""
    if not material.weights or material.difficulty is None:
        return None, ""
    from potstill.evaluation.length_control import baseline_of

    own = baseline_of(material.weights)
    name = material.weights_from.name if material.weights_from else ""
    line = board.get(own or "")
    if own is None or line is None or line.win_rate != EVEN:
        return (
            None,
            f"the weights of {name} are against {own or 'no model that they name'}, and this leaderboard is not",
        )
    if material.baseline is not None and material.baseline not in material.weights:
        return None, f"the weights of {name} hold none of '{material.baseline}'"
    return material.baseline or own, ""


def _line(row: Published, material: Material, against: str | None) -> dict[str, Any]:
    """A published line with the interval that its standard error makes, and its rate at equal length from weights."""
    low, high = _ends(row.win_rate, row.standard_error, row.n_total)
    lc_low, lc_high = _ends(row.length_controlled_winrate, row.lc_standard_error, row.n_total)
    controlled = None
    weights = material.weights.get(row.model) if against is not None else None
    if weights is not None and against is not None and material.difficulty is not None:
        controlled = _by_weights(row, weights, material.weights[against], material.difficulty)
    ends = {"low": low, "high": high, "lc_low": lc_low, "lc_high": lc_high}
    return {**asdict(row), **ends, "length_controlled": controlled}


def _ends(rate: float | None, error: float | None, n: int | None) -> tuple[float | None, float | None]:
    """The 95% interval that a published standard error makes, in percent."""
    if rate is None or error is None:
        return None, None
    half = student_quantile(max(1, (n or 0) - 1)) * error
    return max(0.0, rate - half), min(100.0, rate + half)


def _by_weights(row: Published, weights: "Weights", baseline: "Weights", difficulty: "Difficulty") -> dict[str, Any]:
    """What the weights say beside what is published. A file that lacks rows was matched with the first difficulties."""
    from potstill.evaluation import length_control

    meant = length_control.difference(weights, baseline)
    found = length_control.controlled(meant, difficulty.values)
    published = row.length_controlled_winrate if meant == weights else None
    least = max(2, min(row.n_total or len(difficulty.values), len(difficulty.values)))
    if published is not None and not _equal(found, published):
        counts = range(len(difficulty.values) - 1, least - 1, -1)
        shorter = (length_control.controlled(meant, difficulty.values[:n]) for n in counts)
        found = next((one for one in shorter if _equal(one, published)), found)
    return {**asdict(found), "difference": None if published is None else found.win_rate - published}


def _equal(found: "Controlled", published: float) -> bool:
    return abs(found.win_rate - published) <= EQUAL


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


# Warnings.


def _said(alone: Estimate) -> str:
    """A mean in a sentence."""
    ends = "" if alone.low is None or alone.high is None else f" [{alone.low:.4g}, {alone.high:.4g}]"
    return "none" if alone.mean is None else f"{alone.mean:.4g}{ends}"


def _warnings(one: Results, name: str, found: Mapping[str, Any]) -> list[str]:
    """What has to be known before a number is believed, in sentences."""
    asked, failed = found["asked"], found["failed"]
    said = []
    if asked and failed / asked > 1 - ENOUGH:
        left = asked - failed
        share = f"coverage {left / asked:.0%}: {left:,} of {asked:,} could be scored"
        alone = "the mean is of those alone, and says nothing of the others"
        if left < LEAST_SCORED * asked:
            alone = "too few for a mean"
            alone += (
                f" ({_said(one.result.measure.estimate(one.result.observations[name]))} of those alone)" if left else ""
            )
        said.append(f"{share}; {alone}")
    if found["repeated"]:
        first = _said(Estimate(**found["first_run"]))
        said.append(
            f"{found['repeated']:,} of {asked:,} rows are scored a second time under the same names; the mean is over "
            f"all, as published means are, and of the first of each alone {first}"
        )
    if missing := _missing(one, name):
        said.append(missing)
    if unlike := found["unlike"]:
        shown = "; ".join(
            f"{row['question']}, turn {row['turn']}: stored {_value(row['stored'])}, said {_value(row['said'])}"
            for row in unlike[:SHOWN]
        )
        rest = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
        said.append(f"{len(unlike)} stored otherwise than the judge's reply reads ({shown}{rest}); counted as stored")
    if beyond := _beyond(one, name):
        said.append(beyond)
    if (found["length_controlled"] or {}).get("weights_left_out"):
        said.append(f"the published weights are not against {one.baseline}, and are left out")
    if why := (found["length_controlled"] or {}).get("no_fit"):
        said.append(f"no rate at equal length could be fitted: {why}")
    return said


def _missing(one: Results, name: str) -> str:
    """Where others of the file were asked more."""
    asked = {(row.question, row.part) for row in one.result.observations[name] if not is_repeat(row.part)}
    all_asked = {
        (row.question, row.part) for rows in one.result.observations.values() for row in rows if not is_repeat(row.part)
    }
    lacking = len(all_asked - asked)
    return f"{lacking:,} of {len(all_asked):,} that other models here were asked are missing" if lacking else ""


def _beyond(one: Results, name: str) -> str:
    """Where stored grades leave their scale."""
    if one.suite != fastchat_scores.GRADE.protocol:
        return ""
    rows = one.result.observations[name]
    beyond = [row for row in rows if fastchat_scores.is_beyond(row.value)]
    others = one.result.measure.estimate([row for row in rows if not fastchat_scores.is_beyond(row.value)])
    shown = "; ".join(f"{row.question}, turn {row.part}: {_value(row.value)}" for row in beyond[:SHOWN])
    rest = f" and {len(beyond) - SHOWN} more" if len(beyond) > SHOWN else ""
    what = f"{len(beyond)} scores lie beyond the scale ({shown}{rest}); counted as stored, and of the others alone"
    return f"{what} {_said(others)}" if beyond else ""


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
