"""What the files hold that `potstill score` is given: results, leaderboards, outputs, tables of length control."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import DataError
from potstill.evaluation import alpaca_eval
from potstill.evaluation.alpaca_eval import Published
from potstill.reading.files import read_lines
from potstill.scoring.results import Results, first_row, is_text, places, read_place, why_none

if TYPE_CHECKING:
    from potstill.evaluation.length_control import Difficulty, Weights


@dataclass
class Material:
    """What the files that were named hold."""

    results: list[Results] = field(default_factory=list)
    boards: dict[Path, dict[str, Published]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """The characters of each answer in a file of outputs, by model."""
    weights_from: Path | None = None
    difficulty_from: Path | None = None
    weights: "dict[str, Weights]" = field(default_factory=dict)
    difficulty: "Difficulty | None" = None
    baseline: str | None = None
    """The one model that all are to be set against."""
    skipped: list[str] = field(default_factory=list)
    """Files in folders that hold no results, with the reason."""

    def board(self, annotator: str) -> dict[str, Published]:
        """The leaderboard of an annotator, which is called by its name."""
        return next((board for path, board in self.boards.items() if annotator_of(path) == annotator), {})


def annotator_of(path: Path) -> str:
    """Whose leaderboard a file is: AlpacaEval calls it by the annotator."""
    return path.name.split(".")[0].removesuffix("_leaderboard")


def gather(paths: Sequence[Path], weights: Path | None = None, difficulty: Path | None = None) -> Material:
    """Every file that the paths mean, by what it holds."""
    material = Material()
    for table in (weights, difficulty):
        if table is not None and not _take_table(table, material):
            what = "it holds neither weights nor difficulties; expected a table of AlpacaEval's length control"
            raise DataError(str(table), what, "Name lc_weights.csv or instruction_difficulty.csv")
    seen: set[str] = set()
    for path in paths:
        for place in places(path):
            real = os.path.realpath(place)  # of a link to itself too, which Path.resolve refuses
            if real not in seen:
                seen.add(real)
                _take(place, material, strict=place == path)
    if any(one.suite == alpaca_eval.WIN_RATE.protocol for one in material.results):
        _look_beside(material)
    return material


def _take(place: Path, material: Material, *, strict: bool) -> None:
    """Sort one file or folder in. One that was not named itself, and holds nothing of the kind, is skipped."""
    if not place.is_dir():
        if not strict and (why := _unreadable(place)):
            material.skipped.append(why)
            return
        if _take_table(place, material):
            return
    found = read_place(place, strict=strict)
    material.results += found
    if not found:
        why = "its evaluation holds no scores" if place.is_dir() else why_none(first_row(place).value)
        material.skipped.append(f"{place}: {why}")


def _unreadable(path: Path) -> str:
    """Why not even the first row of a file can be read, if it cannot."""
    try:
        first = first_row(path)
    except DataError as error:
        return str(error)
    return f"{path}:{first.number}: {first.error}" if first.error else ""


def _take_table(path: Path, material: Material) -> bool:
    """Whether a file is a leaderboard, a model's outputs, or a table of length control; then it is kept."""
    first, where = first_row(path).value, str(path)
    if alpaca_eval.is_published(first):
        material.boards[path] = alpaca_eval.read_leaderboard(read_lines(path), where)
        return True
    if alpaca_eval.is_output(first):
        for row in alpaca_eval.read_outputs(read_lines(path), where):
            material.lengths.setdefault(row.generator, []).append(len(row.output))
        return True
    return path.suffix != ".json" and _take_length_control(path, first, material)


def _take_length_control(path: Path, first: Any, material: Material) -> bool:
    from potstill.evaluation import length_control  # imports numpy

    if length_control.is_weights(first):
        _refuse_second(material.weights_from, path, "weights")
        material.weights_from = path
        material.weights = length_control.read_weights(read_lines(path), str(path))
    elif length_control.is_difficulty(first):
        _refuse_second(material.difficulty_from, path, "difficulties")
        material.difficulty_from = path
        material.difficulty = length_control.read_difficulty(read_lines(path), str(path))
    else:
        return False
    return True


def _refuse_second(earlier: Path | None, path: Path, what: str) -> None:
    if earlier is not None and earlier.resolve() != path.resolve():
        raise DataError(str(path), f"{what} are given already, by {earlier}; expected one file", "Name only one")


def _look_beside(material: Material) -> None:
    """Tables of length control in the folders of the annotations, where none was given. What is found is said."""
    folders = dict.fromkeys(one.path.parent for one in material.results if one.path.is_file())
    tables = [path for folder in folders for path in sorted(folder.glob("*.csv*")) if is_text(path)]
    for path in tables:
        fresh = Material()
        if _unreadable(path):
            continue
        if _take_length_control(path, first_row(path).value, fresh):
            if fresh.weights and not material.weights:
                material.weights, material.weights_from = fresh.weights, path
            if fresh.difficulty and not material.difficulty:
                material.difficulty, material.difficulty_from = fresh.difficulty, path
