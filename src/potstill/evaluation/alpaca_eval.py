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
from potstill.evaluation.stored import number_or_none, read_typed, text_or_none, without, write_list
from potstill.files import Line
from potstill.turns import Columns, string

WIN_RATE = Measure("alpaca_eval", (0.0, 1.0), unit="share won")
DRAW, OLD_DRAW = 1.5, 0.0
LOWEST, HIGHEST = 1.0, 2.0
"""The baseline is better; the model is."""

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


def is_annotation(row: Any) -> bool:
    """Whether a row is an annotation by its columns."""
    return isinstance(row, Mapping) and {"instruction", "preference", "generator_1", "generator_2"} <= row.keys()


def is_output(row: Any) -> bool:
    """Whether a row is a model's output by its columns."""
    return isinstance(row, Mapping) and {"instruction", "output", "generator"} <= row.keys()


def read_annotations(lines: Iterable[Line], where: str) -> list[Annotation]:
    """The annotations in a file's rows. DataError at the first that is none."""
    return read_typed(lines, where, _annotation)


def read_outputs(lines: Iterable[Line], where: str) -> list[Output]:
    """The outputs in a file's rows. DataError at the first that is none."""
    return read_typed(lines, where, _output)


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


def by_comparison(annotations: Iterable[Annotation]) -> dict[tuple[str, str], dict[str, list[Annotation]]]:
    """The annotations by (annotator, baseline), and in each by model, in the order in which they are first met."""
    groups: dict[tuple[str, str], dict[str, list[Annotation]]] = defaultdict(lambda: defaultdict(list))
    for row in annotations:
        groups[row.annotator, row.generator_1][row.generator_2].append(row)
    return {key: dict(models) for key, models in groups.items()}


def observations(annotations: Sequence[Annotation]) -> list[Observation]:
    """One a row: the share of the win. A question is its instruction; each further row of one is a part of its own."""
    met: dict[str, int] = defaultdict(int)
    found = []
    for row in annotations:
        question = digest(row.instruction)[:16]
        met[question] += 1
        part = "" if met[question] == 1 else f"run {met[question]}"
        value = None if row.preference is None else row.preference - LOWEST
        found.append(Observation(question, part, value, category=row.dataset))
    return found


def entry(annotations: Sequence[Annotation], outputs: Sequence[str | None] = ()) -> Entry:
    """The leaderboard's line for one model's annotations against one baseline.

    The standard error is that of a mean of independent rows (n - 1). The discrete win rate counts every preference as
    the nearer of 1 and 2. `outputs` are the model's answers, whose mean length in characters is cut to a whole number.
    """
    shares = [row.preference - LOWEST for row in annotations if row.preference is not None]
    nearer = [share if share == 0.5 else float(round(share)) for share in shares]
    lengths = [len(text) for text in outputs if text is not None]
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
