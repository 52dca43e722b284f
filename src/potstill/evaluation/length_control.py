"""AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475): what it would be at equal length.

A model's preferences are explained by a logistic regression on three features: how much longer the baseline's answer
is, as tanh of the difference in characters over its standard deviation (n - 1); how difficult the instruction is; and a
constant. The win rate is the mean of its predictions over all instructions with the first feature set to 0.

AlpacaEval's fit has an L1 penalty whose strength is chosen by cross-validation, and holds two more sets of rows: the
baseline asked to be verbose and to be concise ("gamed"), each row weighing a tenth. They have no constant, so they say
what length and difficulty alone do. Who has its df_gamed.csv can fit as published; without it a fit is unregularised.

N: rows. Features are in the order length, difficulty, constant.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.errors import DataError
from potstill.evaluation.alpaca_eval import Annotation
from potstill.evaluation.distributions import student_quantile
from potstill.evaluation.stored import number_or_none, read_typed
from potstill.reading.files import Line
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, string

Floats = npt.NDArray[np.float64]

WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
"""The features as the columns of AlpacaEval's files of weights name them."""
DIFFICULTY = ("instruction_difficulty", "instruction_difficulty_recovered")
PLACES = ("index", "instruction_index")
STRENGTHS = tuple(10 ** (-4 + 8 * i / 9) for i in range(10))
"""The penalties that are tried, as the weight of the loss against it."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Of a row of the gamed baselines: a strength of 0.2 over two of them."""
REMEDY = "Mend the row, or fetch the file again"


@dataclass(frozen=True)
class Weights:
    """A model's fitted regression."""

    length: float
    difficulty: float
    constant: float


@dataclass(frozen=True)
class Gamed:
    """The rows of the gamed baselines: features in the order of the module, and the share of the win."""

    features: Floats
    shares: Floats


@dataclass(frozen=True)
class Difficulty:
    """How difficult each instruction is, in the benchmark's order."""

    values: tuple[float, ...]
    instructions: tuple[str, ...] = ()
    """What they are, where the file tells."""
    gamed: Gamed | None = None


@dataclass(frozen=True)
class Controlled:
    """A win rate at equal length, in percent. The standard error and the 95% interval are AlpacaEval's: of other
    instructions, with the weights held fixed. They leave out that other judgments would have led to other weights."""

    win_rate: float
    standard_error: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Fit:
    """A regression fitted here. The interval, in percent, is of other instructions and judgments of them: the fitted
    weights move with them (infinitesimal jackknife by instruction)."""

    weights: Weights
    controlled: Controlled
    low: float | None
    high: float | None
    strength: float | None
    """The chosen one of STRENGTHS. None: without penalty and gamed rows."""
    by: str
    """How difficulties were matched: instruction or place; empty where there are none."""
    values: tuple[float | None, ...] = ()
    """What each annotation adds, in percent: their mean is the win rate, their spread the interval's, and differences
    of two models' are paired (pseudo-values of the infinitesimal jackknife). None: it holds no preference."""


def difference(model: Weights, baseline: Weights) -> Weights:
    """The weights of a model against another that both were fitted against a third."""
    return Weights(
        model.length - baseline.length, model.difficulty - baseline.difficulty, model.constant - baseline.constant
    )


def baseline_of(weights: Mapping[str, Weights]) -> str | None:
    """Whom weights were fitted against: the one that has none, for it ties with itself."""
    return next((name for name, found in weights.items() if found == Weights(0.0, 0.0, 0.0)), None)


def is_weights(row: Any) -> bool:
    """Whether a table's row holds published weights, by its columns."""
    return isinstance(row, dict) and set(WEIGHTS) <= row.keys()


def is_difficulty(row: Any) -> bool:
    """Whether a table's row holds an instruction's difficulty, by its columns."""
    return isinstance(row, dict) and not is_weights(row) and any(name in row for name in DIFFICULTY)


def read_weights(lines: Iterable[Line], where: str) -> dict[str, Weights]:
    """Published weights by model. DataError where a row holds none."""

    def read(row: Columns) -> tuple[str, Weights]:
        return string(row, ""), Weights(*(_finite(row, name) for name in WEIGHTS))

    found = read_typed(lines, where, read)
    names = [name for name, _ in found]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise DataError(where, f"the weights of '{twice}' stand there twice; expected one row a model", "Remove one")
    if not found:
        raise DataError(where, "it holds no weights; expected one row a model", "Fetch the file again")
    return dict(found)


def read_difficulty(lines: Iterable[Line], where: str) -> Difficulty:
    """Instruction difficulties: AlpacaEval's instruction_difficulty.csv, or its df_gamed.csv, which holds more."""
    rows = read_typed(lines, where, _difficulty_row)
    if not rows:
        raise DataError(where, "it holds no difficulties; expected one row an instruction", "Fetch the file again")
    once: dict[int, tuple[float, str]] = {}
    for at, (place, value, text, _) in enumerate(rows):
        once.setdefault(at if place is None else place, (value, text))
    places = sorted(once)
    if places != list(range(len(places))):
        what = f"the instructions' places are {places[0]} to {places[-1]} with gaps; expected 0, 1, 2 and so on"
        raise DataError(where, what, "Fetch the file again")
    values, texts = zip(*(once[place] for place in places), strict=True)
    games = [row[3] for row in rows if row[3] is not None]
    gamed = Gamed(np.array([game[:3] for game in games]), np.array([game[3] for game in games])) if games else None
    return Difficulty(values, texts if all(texts) else (), gamed)


def _difficulty_row(row: Columns) -> tuple[int | None, float, str, tuple[float, ...] | None]:
    """The instruction's place, difficulty and text; of a gamed row its features and share."""
    name = next((name for name in DIFFICULTY if name in row), DIFFICULTY[0])
    value = _finite(row, name)
    place = next((_finite(row, one) for one in PLACES if one in row), None)
    game = None
    if "std_delta_len" in row and "preference" in row:
        game = (math.tanh(_finite(row, "std_delta_len")), value, 0.0, _finite(row, "preference"))
        if not 0 <= game[3] <= 1:
            raise ShapeError(f"'preference' is {game[3]:g}; expected a share from 0 to 1")
    return None if place is None else int(place), value, str(row.get("instruction") or ""), game


def _finite(row: Columns, column: str) -> float:
    value = number_or_none(row, column, "a number")
    if value is None:
        raise ShapeError(f"{column!r} holds no finite number; expected one")
    return value


def controlled(weights: Weights, difficulty: Sequence[float]) -> Controlled:
    """The win rate that weights say at equal length. AlpacaEval matches difficulties by place: for a model whose file
    lacks rows, its published rate is over the first so many."""
    return _controlled(weights, np.array(difficulty, dtype=float))


def _controlled(weights: Weights, difficulty_N: Floats) -> Controlled:
    shares_N = _logistic(weights.constant + weights.difficulty * difficulty_N)
    n = len(shares_N)
    error = 100 * float(shares_N.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    rate, half = 100 * float(shares_N.mean()), None if error is None else student_quantile(n - 1) * error
    if half is None:
        return Controlled(rate, None, None, None, n)
    return Controlled(rate, error, max(0.0, rate - half), min(100.0, rate + half), n)


def fit(annotations: Sequence[Annotation], difficulty: Difficulty | None, where: str) -> Fit:
    """The regression of one model's annotations: as published with gamed rows, else plain maximum likelihood.

    Without `difficulty` the regression has no such feature. Rows that nobody answered or judged are left out.
    DataError where an answer or a difficulty is missing, or where the rows cannot tell the weights.
    """
    difficulty_N, by = _matched(annotations, difficulty, where) if difficulty else (np.zeros(len(annotations)), "")
    rows = [at for at, row in enumerate(annotations) if row.preference is not None or _answered(row)]
    features, shares, known = _features([annotations[at] for at in rows], difficulty_N[rows], where)
    x, y, w = features[known], shares[known], np.ones(int(known.sum()))
    strength = None
    if difficulty is not None and difficulty.gamed is not None:
        x = np.concatenate([difficulty.gamed.features, x])
        y = np.concatenate([difficulty.gamed.shares, y])
        w = np.concatenate([np.full(len(difficulty.gamed.shares), GAMED_WEIGHT), w])
        strength = _choose(x, y, w)
    used = [0, 1, 2] if difficulty else [0, 2]
    theta, full = np.zeros(3), np.linalg.matrix_rank(x[:, used]) == len(used)
    found = _minimise(x[:, used], y, w, 0.0 if strength is None else 1 / strength) if full else None
    if found is None:
        what = "the preferences have no one finite fit: length, difficulty and a constant cannot be told apart in them"
        raise DataError(where, what, "Give more annotations, or df_gamed.csv as --difficulty, whose rows bound it")
    theta[used] = found
    level, moved_N = _influence(theta, used, (x, w), features, shares, known)
    low, high = _interval(level, moved_N)
    told = 100 * (level + moved_N - moved_N[known].mean())
    values = dict(zip(rows, (float(v) if k else None for v, k in zip(told, known, strict=True)), strict=True))
    return Fit(
        Weights(*map(float, theta)),
        _controlled(Weights(*map(float, theta)), difficulty_N[rows]),
        low,
        high,
        strength,
        by,
        tuple(values.get(at) for at in range(len(annotations))),
    )


def _answered(row: Annotation) -> bool:
    return row.output_1 is not None and row.output_2 is not None


def _matched(annotations: Sequence[Annotation], difficulty: Difficulty, where: str) -> tuple[Floats, str]:
    """The difficulty of each annotation's instruction: by its text where the file tells it, else by its place."""
    if difficulty.instructions:
        known = dict(zip(difficulty.instructions, difficulty.values, strict=True))
        missing = next((row.instruction for row in annotations if row.instruction not in known), None)
        if missing is not None:
            what = f"the difficulty of {missing[:60]!r} is not known; expected one for every instruction"
            raise DataError(where, what, "Name the difficulties of this benchmark")
        return np.array([known[row.instruction] for row in annotations]), "instruction"
    if len(annotations) > len(difficulty.values):
        what = f"there are {len(annotations)} annotations and {len(difficulty.values)} difficulties"
        raise DataError(where, f"{what}; expected one for every instruction", "Name the difficulties of this benchmark")
    return np.array(difficulty.values[: len(annotations)]), "place"


def _features(annotations: Sequence[Annotation], difficulty_N: Floats, where: str) -> tuple[Floats, Floats, Any]:
    """The features and shares of all rows, and which of them hold a preference."""
    lengths = [
        (len(row.output_1), len(row.output_2))
        for row in annotations
        if row.output_1 is not None
        if row.output_2 is not None
    ]
    if len(lengths) < len(annotations):
        what = f"{len(annotations) - len(lengths)} rows lack output_1 or output_2; expected both, for their lengths"
        raise DataError(where, what, "Name annotations that hold the answers")
    longer_N = np.array([float(one - two) for one, two in lengths])
    deviation = float(longer_N.std(ddof=1)) if len(longer_N) > 1 else 0.0
    if deviation == 0:
        what = "the answers of the model and the baseline differ in length by the same everywhere; expected a spread"
        raise DataError(where, what, "Leave out --difficulty: length explains nothing here")
    features = np.stack([np.tanh(longer_N / deviation), difficulty_N, np.ones(len(longer_N))], axis=1)
    shares = np.array([math.nan if row.preference is None else row.preference - 1 for row in annotations])
    return features, shares, ~np.isnan(shares)


def _choose(x: Floats, y: Floats, w: Floats) -> float:
    """The penalty under which the rows left out are told best; the weaker loss weight where two are alike."""
    fold = np.arange(len(y)) % FOLDS
    losses = []
    for strength in STRENGTHS:
        total = 0.0
        for out in range(FOLDS):
            theta = _minimise(x[fold != out], y[fold != out], w[fold != out], 1 / strength)
            held = fold == out
            z = x[held] @ (theta if theta is not None else np.zeros(3))
            total += float(np.mean(w[held] * (np.logaddexp(0, z) - y[held] * z)))
        losses.append(total)
    return STRENGTHS[int(np.argmin(losses))]


def _minimise(x: Floats, y: Floats, w: Floats, penalty: float, steps: int = 100) -> Floats | None:
    """The weights that minimise the summed logistic loss and `penalty` times their absolute values.

    Proximal Newton: each step solves the quadratic model by coordinates. None where no finite minimum is found.
    """
    theta, value = np.zeros(x.shape[1]), math.inf
    for _ in range(steps):
        p = _logistic(x @ theta)
        gradient = x.T @ (w * (p - y))
        curvature = (x * (w * p * (1 - p))[:, None]).T @ x
        step = _descent(theta, gradient, curvature, penalty)
        if step is None:
            return None
        scale, before = 1.0, _loss(x, y, w, theta, penalty)
        while (value := _loss(x, y, w, theta + scale * step, penalty)) > before + 1e-12 * abs(before) and scale > 1e-10:
            scale /= 2
        theta = theta + scale * step
        if float(np.abs(scale * step).max()) < 1e-10:
            return theta
        if not np.isfinite(value) or float(np.abs(theta).max()) > 1e3:
            return None
    return None


def _descent(theta: Floats, gradient: Floats, curvature: Floats, penalty: float) -> Floats | None:
    """The step that minimises the quadratic model with the penalty."""
    if penalty == 0:
        try:
            return np.asarray(np.linalg.solve(curvature, -gradient))
        except np.linalg.LinAlgError:
            return None
    step = np.zeros(len(theta))
    for _ in range(200):
        before = step.copy()
        for j in range(len(theta)):
            bend = curvature[j, j] + 1e-12
            slope = gradient[j] + curvature[j] @ step - bend * step[j]
            goal = bend * theta[j] - slope
            step[j] = math.copysign(max(abs(goal) - penalty, 0.0), goal) / bend - theta[j]
        if float(np.abs(step - before).max()) < 1e-13:
            break
    return step


def _loss(x: Floats, y: Floats, w: Floats, theta: Floats, penalty: float) -> float:
    z = x @ theta
    return float(w @ (np.logaddexp(0, z) - y * z)) + penalty * float(np.abs(theta).sum())


def _influence(
    theta: Floats, used: list[int], fitted: tuple[Floats, Floats], features: Floats, shares: Floats, known: Any
) -> tuple[float, Floats]:
    """The win rate, and how much each instruction moves it, through its own prediction and through the weights."""
    (x, w), n = fitted, len(features)
    p = _logistic(x @ theta)
    curvature = (x * (w * p * (1 - p))[:, None]).T @ x
    even = features.copy()
    even[:, 0] = 0
    level_N = _logistic(even @ theta)
    slope = (even * (level_N * (1 - level_N))[:, None]).mean(axis=0)
    residual_N = np.where(known, np.nan_to_num(shares) - _logistic(features @ theta), 0.0)
    step = np.linalg.lstsq(curvature[np.ix_(used, used)], slope[used])[0]
    moved_N = level_N - level_N.mean() + n * (features[:, used] * residual_N[:, None]) @ step
    return float(level_N.mean()), np.asarray(moved_N)


def _interval(level: float, moved_N: Floats) -> tuple[float | None, float | None]:
    """95%, in percent."""
    n = len(moved_N)
    if n < 2:
        return None, None
    half = student_quantile(n - 1) * float(moved_N.std(ddof=1)) / math.sqrt(n)
    return 100 * max(0.0, level - half), 100 * min(1.0, level + half)


def _logistic(z: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))
