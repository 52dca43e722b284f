"""AlpacaEval's files and its win rate (Li et al. 2023; Dubois et al. 2024): annotations, outputs, leaderboards.

An annotation compares a model (`generator_2`) with a baseline (`generator_1`) on one instruction. Its preference runs
from 1, the baseline's answer is better, to 2, the model's is; 1.5 is a draw, which older files store as 0. A model's
win rate is the mean of preference - 1. What is no number from 1 to 2 is no annotation: it is counted, and in no mean.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from potstill.artifact import digest
from potstill.evaluation.scores import Measure
from potstill.evaluation.statistics import Observation
from potstill.evaluation.stored import number_or_none, numbered, read_typed, text_or_none, without, write_list
from potstill.reading.files import Line
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, string

WIN_RATE = Measure("alpaca_eval", (0.0, 1.0), share=True, unit="share won")
DRAW, OLD_DRAW = 1.5, 0.0
LOWEST, HIGHEST = 1.0, 2.0
"""The baseline is better; the model is."""
ROUNDED = 1e-6
"""More than the ten digits to which preferences are stored can differ."""

NAMED = ("instruction", "output_1", "generator_1", "dataset", "output_2", "generator_2", "annotator", "preference")
"""The columns of an annotation that potstill reads, in the order in which AlpacaEval writes them."""


@dataclass(frozen=True)
class Annotation:
    """One comparison. What AlpacaEval keeps beside it (prices, times, the judge's raw reply) stays in `rest`."""

    instruction: str
    generator_1: str
    generator_2: str
    preference: float | None
    """1 to 2; a stored 0 is read as 1.5. None: the judge gave none that counts."""
    output_1: str | None = None
    output_2: str | None = None
    dataset: str = ""
    annotator: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As AlpacaEval writes it."""
        named = {name: getattr(self, name) for name in NAMED}
        return {**named, **self.rest}


@dataclass(frozen=True)
class Output:
    """A model's answer to an instruction, a row of model_outputs.json."""

    instruction: str
    output: str
    generator: str
    dataset: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As AlpacaEval writes it."""
        return {
            "dataset": self.dataset,
            "instruction": self.instruction,
            "output": self.output,
            "generator": self.generator,
            **self.rest,
        }


@dataclass(frozen=True)
class Entry:
    """A line of a leaderboard: a win rate and what it rests on, in percent as it is published."""

    win_rate: float | None
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float | None
    avg_length: int | None = None

    def to_json(self) -> dict[str, float | int | None]:
        """By the names of the leaderboard's columns."""
        return asdict(self)


@dataclass(frozen=True)
class Published:
    """A line of a published leaderboard, in percent; None where it has no such column, or leaves it empty."""

    model: str
    win_rate: float
    standard_error: float | None
    n_total: int | None
    avg_length: float | None
    discrete_win_rate: float | None
    length_controlled_winrate: float | None
    lc_standard_error: float | None


ANNOTATED = frozenset({"instruction", "preference", "generator_1", "generator_2"})
"""The columns that an annotation is told by."""
PUT_OUT = frozenset({"instruction", "output", "generator"})
"""The columns that a model's output is told by."""
PUBLISHED = frozenset({"win_rate", "standard_error", "n_total"})
"""The columns that a leaderboard is told by."""


def is_annotation(row: Any) -> bool:
    """Whether a row is an annotation by its columns."""
    return isinstance(row, Mapping) and row.keys() >= ANNOTATED


def is_output(row: Any) -> bool:
    """Whether a row is a model's output by its columns."""
    return isinstance(row, Mapping) and row.keys() >= PUT_OUT


def is_published(row: Any) -> bool:
    """Whether a table's row is a leaderboard's, by its columns."""
    return isinstance(row, Mapping) and row.keys() >= PUBLISHED


def read_annotations(lines: Iterable[Line], where: str) -> list[Annotation]:
    """The annotations in a file's rows. DataError at the first that is none."""
    return read_typed(lines, where, _annotation)


def read_outputs(lines: Iterable[Line], where: str) -> list[Output]:
    """The outputs in a file's rows. DataError at the first that is none."""
    return read_typed(lines, where, _output)


def read_leaderboard(lines: Iterable[Line], where: str) -> dict[str, Published]:
    """A leaderboard's lines by model."""
    return {row.model: row for row in read_typed(lines, where, _published)}


def write_rows(path: Path, rows: Iterable[Annotation | Output]) -> None:
    """A file as AlpacaEval writes and reads it: one list of objects."""
    write_list(path, (row.to_json() for row in rows))


def _annotation(row: Columns) -> Annotation:
    preference = number_or_none(row, "preference", "a number from 1 to 2, or null")
    if preference == OLD_DRAW:
        preference = DRAW
    if preference is not None and not LOWEST <= preference <= HIGHEST:
        preference = None
    return Annotation(
        instruction=string(row, "instruction"),
        generator_1=string(row, "generator_1"),
        generator_2=string(row, "generator_2"),
        preference=preference,
        output_1=text_or_none(row, "output_1"),
        output_2=text_or_none(row, "output_2"),
        dataset=text_or_none(row, "dataset") or "",
        annotator=text_or_none(row, "annotator") or "",
        rest=without(row, NAMED),
    )


def _output(row: Columns) -> Output:
    return Output(
        instruction=string(row, "instruction"),
        output=string(row, "output"),
        generator=string(row, "generator"),
        dataset=text_or_none(row, "dataset") or "",
        rest=without(row, ("dataset", "instruction", "output", "generator")),
    )


def _published(row: Columns) -> Published:
    rate = number_or_none(row, "win_rate", "a number")
    if rate is None:
        raise ShapeError("'win_rate' is missing; expected a number")
    names = ("standard_error", "avg_length", "discrete_win_rate", "length_controlled_winrate", "lc_standard_error")
    rest = {name: number_or_none(row, name, "a number") for name in names}
    total = number_or_none(row, "n_total", "a whole number")
    name = next((column for column in ("", "model", "name") if column in row), "")
    return Published(string(row, name), rate, n_total=None if total is None else int(total), **rest)


def by_comparison(annotations: Iterable[Annotation]) -> dict[tuple[str, str], dict[str, list[Annotation]]]:
    """The annotations by (annotator, baseline), and in each by model, in the order in which they are first met."""
    groups: dict[tuple[str, str], dict[str, list[Annotation]]] = defaultdict(lambda: defaultdict(list))
    for row in annotations:
        groups[row.annotator, row.generator_1][row.generator_2].append(row)
    return {key: dict(models) for key, models in groups.items()}


def question_of(row: Annotation) -> str:
    """The id of its question, which AlpacaEval knows by its instruction alone."""
    return digest(row.instruction)[:16]


def observations(annotations: Sequence[Annotation]) -> list[Observation]:
    """One a row: the share of the win. A question is its instruction; each further row of one is a part of its own."""
    met: dict[str, int] = defaultdict(int)
    found = []
    for row in annotations:
        question = question_of(row)
        met[question] += 1
        part = numbered("", met[question])
        value = None if row.preference is None else row.preference - LOWEST
        found.append(Observation(question, part, value, category=row.dataset))
    return found


def unlike(annotations: Iterable[Annotation]) -> list[tuple[Annotation, float]]:
    """The annotations whose raw completion holds the probabilities of "m" and "M" and says another preference.

    AlpacaEval 2 reads 2 - P(m) / (P(m) + P(M)) off the first token, and shows the answers in either order: what it
    says is the preference, or 3 less it. Both are compared, and the nearer one returned.
    """
    found = []
    for row in annotations:
        said = _said(row.rest.get("raw_completion"))
        if said is None or row.preference is None:
            continue
        nearer = min(said, 3 - said, key=lambda one: abs(one - (row.preference or 0)))
        if abs(nearer - row.preference) > ROUNDED:
            found.append((row, nearer))
    return found


def _said(completion: Any) -> float | None:
    """The preference in a completion's first token; None where it holds no such probabilities."""
    try:
        tokens = completion["logprobs"]["content"][0]["top_logprobs"]
        chances = {token["token"]: math.exp(token["logprob"]) for token in tokens if token["token"] in ("m", "M")}
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return None
    total = sum(chances.values())
    return 2 - chances.get("m", 0.0) / total if total > 0 else None


def entry(annotations: Sequence[Annotation], lengths: Sequence[int] = ()) -> Entry:
    """The leaderboard's line for one model's annotations against one baseline.

    The standard error is that of a mean of independent rows (n - 1). The discrete win rate counts every preference as
    the nearer of 1 and 2. `lengths` are the characters of the model's answers, whose mean is cut to a whole number.
    """
    shares = [row.preference - LOWEST for row in annotations if row.preference is not None]
    nearer = [share if share == 0.5 else float(round(share)) for share in shares]
    return Entry(
        win_rate=100 * math.fsum(shares) / len(shares) if shares else None,
        standard_error=100 * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else None,
        n_wins=sum(share > 0.5 for share in shares),
        n_wins_base=sum(share < 0.5 for share in shares),
        n_draws=sum(share == 0.5 for share in shares),
        n_total=len(shares),
        discrete_win_rate=100 * math.fsum(nearer) / len(nearer) if nearer else None,
        avg_length=sum(lengths) // len(lengths) if lengths else None,
    )
