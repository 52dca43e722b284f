"""Local files of the leaderboard's tasks, in each task's own format, read and checked row by row."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.reading.files import SUFFIXES, read_lines

Row = dict[str, Any]
Splits = dict[str, list[Row]]
"""Rows by the name of their split, as lm-eval asks for them."""


@dataclass(frozen=True)
class Format:
    """What a task's files hold."""

    scored: str
    """The split whose questions are asked."""
    shots: str
    """The split that solved examples are taken from; "" where the task has none."""
    read: Callable[[Row], Row]
    """The columns that the task needs; ValueError, saying what was expected, where they are not that."""
    columns: str
    """They in words."""


def _text(row: Row, name: str) -> str:
    if not isinstance(row.get(name), str):
        raise ValueError(f"'{name}' is no text")
    return str(row[name])


def _texts(row: Row, name: str, least: int = 2) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(one, str) for one in value):
        raise ValueError(f"'{name}' is no list of {least} texts or more")
    return value


def _mapping(row: Row, name: str) -> Row:
    value = row.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"'{name}' is no mapping")
    return value


def _index(row: Row, name: str, count: int) -> int:
    value = row.get(name)
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if type(number) is not int or not 0 <= number < count:
        raise ValueError(f"'{name}' is no number from 0 to {count - 1}")
    return number


def _arc(row: Row) -> Row:
    choices = _mapping(row, "choices")
    texts, labels = _texts(choices, "text"), _texts(choices, "label")
    if len(texts) != len(labels) or row.get("answerKey") not in labels:
        raise ValueError("'answerKey' is none of the choices' labels, or there are not as many labels as texts")
    return {
        "question": _text(row, "question"),
        "choices": {"text": texts, "label": labels},
        "answerKey": row["answerKey"],
    }


def _hellaswag(row: Row) -> Row:
    endings = _texts(row, "endings")
    texts = {name: _text(row, name) for name in ("activity_label", "ctx_a", "ctx_b")}
    return {**texts, "endings": endings, "label": str(_index(row, "label", len(endings)))}


def _mmlu(row: Row) -> Row:
    choices = _texts(row, "choices", 4)
    if len(choices) != 4:
        raise ValueError("'choices' holds more than 4")
    return {
        "question": _text(row, "question"),
        "subject": _text(row, "subject"),
        "choices": choices,
        "answer": _index(row, "answer", 4),
    }


def _truthfulqa(row: Row) -> Row:
    return {"question": _text(row, "question")} | {name: _targets(row, name) for name in ("mc1_targets", "mc2_targets")}


def _targets(row: Row, name: str) -> Row:
    targets = _mapping(row, name)
    choices, labels = _texts(targets, "choices"), targets.get("labels")
    if not isinstance(labels, list) or len(labels) != len(choices) or not {0, 1} >= set(labels) or 1 not in labels:
        raise ValueError(f"'{name}' has not a label of 0 or 1 for every choice, or none that is 1")
    return {"choices": choices, "labels": labels}


FORMATS: dict[str, Format] = {
    "arc_challenge": Format("test", "train", _arc, "question, choices {text, label}, answerKey"),
    "arc_easy": Format("test", "train", _arc, "question, choices {text, label}, answerKey"),
    "hellaswag": Format("validation", "train", _hellaswag, "activity_label, ctx_a, ctx_b, endings, label"),
    "mmlu": Format("test", "dev", _mmlu, "question, subject, choices, answer"),
    "truthfulqa_mc2": Format("validation", "", _truthfulqa, "question, mc1_targets, mc2_targets {choices, labels}"),
    "truthfulqa_mc1": Format("validation", "", _truthfulqa, "question, mc1_targets, mc2_targets {choices, labels}"),
}

_SPLIT = {
    "train": re.compile(r"train(?![a-z])"),
    "validation": re.compile(r"val(id(ation)?)?(?![a-z])"),
    "test": re.compile(r"test(?![a-z])"),
    "dev": re.compile(r"dev(?![a-z])"),
}
"""How a file of that split begins: train.jsonl, train-00000-of-00002.parquet, val.json."""


def read_task(task: str, path: Path) -> Splits:
    """What a task asks and shows. A file is the split that is asked; a folder holds each split under its name.

    DataError where a file is missing, or a row is not what the task's format asks for.
    """
    form = FORMATS[task]
    if path.is_file():
        return {form.scored: _rows(task, [path])}
    files = {split: _files(path, split) for split in (form.scored, form.shots) if split}
    if not files[form.scored]:
        what = f"the folder holds no file of the split '{form.scored}', which {task} asks"
        raise DataError(str(path), what, f"Put {form.scored}.jsonl, .json or .parquet there, or name the file itself")
    return {split: _rows(task, found) for split, found in files.items() if found}


def _files(folder: Path, split: str) -> list[Path]:
    """Those of a split: in the folder itself, else in the folder `all` below it, else in all that are below it."""
    whole = folder / "all"
    for found in (folder.glob("*"), whole.glob("*") if whole.is_dir() else folder.glob("*/*")):
        files = sorted(
            file
            for file in found
            if file.is_file() and file.suffix in SUFFIXES and _SPLIT[split].match(file.name.lower())
        )
        if files:
            return files
    return []


def _rows(task: str, files: Iterable[Path]) -> list[Row]:
    form, rows = FORMATS[task], []
    for file in files:
        for line in read_lines(file):
            where = f"{file}:{line.number}"
            if line.error:
                raise DataError(where, line.error, "Mend the row, or take it out")
            try:
                rows.append(form.read(line.value if isinstance(line.value, dict) else {}))
            except ValueError as error:
                what = f"not a row of {task}: {error}; its columns are {form.columns}"
                raise DataError(where, what, "Mend the row, or name the file of another task") from error
    return rows


def by_subject(splits: Splits, subjects: Mapping[str, str], path: Path) -> dict[str, Splits]:
    """MMLU's rows by lm-eval's task for their subject. `subjects`: those tasks by the name of the subject.

    DataError where a subject is none of the 57.
    """
    found: dict[str, Splits] = {}
    for split, rows in splits.items():
        for row in rows:
            name = row["subject"].strip().lower().replace(" ", "_")
            if name not in subjects:
                what = f"'{row['subject']}' is none of MMLU's {len(subjects)} subjects"
                raise DataError(str(path), what, f"Write a subject as its files do, such as {next(iter(subjects))}")
            found.setdefault(subjects[name], {}).setdefault(split, []).append(row)
    return dict(sorted(found.items()))
