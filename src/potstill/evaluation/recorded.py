"""Answers that stand in a file: FastChat's, AlpacaEval's or potstill's own, of models that are known by them alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.errors import DataError
from potstill.evaluation import alpaca_eval, fastchat
from potstill.evaluation.sheets import Sheet, Turn
from potstill.evaluation.stored import read_typed, unlike
from potstill.reading.files import Line, read_lines
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, kind_of, string
from potstill.records import Prompt

EXPECTED = (
    "answers of FastChat (question_id, model_id, choices), outputs of AlpacaEval (instruction, output, generator), or "
    "the answers.jsonl of an evaluation"
)
ANSWERED = frozenset({"question_id", "model_id", "choices"})
Key = tuple[str, str]
"""A question's id and its text; either is empty where the file does not tell it."""


@dataclass(frozen=True)
class Recorded:
    """What one model answered, turn by turn. None: it gave no answer there."""

    model: str
    """As the file calls it."""
    answers: dict[Key, tuple[str | None, ...]] = field(default_factory=dict)

    def to(self, prompt: Prompt) -> tuple[str | None, ...]:
        """Its answers to a prompt and its follow-ups; none where the file holds none."""
        text = prompt.messages[-1].content
        keys = ((prompt.id, text), (prompt.id, ""), ("", text))
        return next((self.answers[key] for key in keys if key in self.answers), ())


def read_recorded(path: Path, where: str, name: str = "") -> Recorded:
    """The answers of one model: the file's only one, or, where it holds several, the one of that name.

    DataError where the file is none of answers, or nobody can tell whose are meant.
    """
    lines = read_lines(path)
    first = next(lines, Line(1))
    rows = _read(first, chain([first], lines), where)
    models: dict[str, Recorded] = {}
    for model, key, answers in rows:
        models.setdefault(model, Recorded(model)).answers.setdefault(key, answers)
    if len(models) == 1:
        return next(iter(models.values()))
    if name in models:
        return models[name]
    meant = f"and '{name}' is none of them" if name else "expected those of one"
    raise DataError(
        where, f"it holds the answers of {len(models)} models, {meant}", f"Name one of: {', '.join(sorted(models))}"
    )


def _read(first: Line, lines: Any, where: str) -> Sequence[tuple[str, Key, tuple[str | None, ...]]]:
    if first.error:
        raise DataError(f"{where}:{first.number}", first.error, "Fetch or write the file again")
    row = first.value
    if isinstance(row, Mapping) and row.keys() >= {"question_id", "choices"}:
        return [
            (one.model_id, (str(one.question_id), ""), one.choices[0]) for one in fastchat.read_answers(lines, where)
        ]
    if alpaca_eval.is_output(row):
        return [(one.generator, ("", one.instruction), (one.output,)) for one in alpaca_eval.read_outputs(lines, where)]
    if isinstance(row, Mapping) and {"model", "id", "turns"} <= row.keys():
        return read_typed(lines, where, _own)
    why = unlike(row, {"answers of FastChat": ANSWERED, "outputs of AlpacaEval": alpaca_eval.PUT_OUT}, "answer")
    raise DataError(f"{where}:{first.number}", f"{why}; expected {EXPECTED}", "Name another file")


def _own(row: Columns) -> tuple[str, Key, tuple[str | None, ...]]:
    """A line of answers.jsonl. A turn without an answer says why."""
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise ShapeError(f"'turns' is {kind_of(turns)}; expected a list of objects with user and assistant")
    said = [string(turn, "assistant") for turn in turns]
    answers = tuple(None if not text and turn.get("reason") else text for text, turn in zip(said, turns, strict=True))
    return string(row, "model"), (string(row, "id"), string(turns[0], "user")), answers


def recorded_sheets(name: str, recorded: Recorded, prompts: Sequence[Prompt], where: str) -> list[Sheet]:
    """The dialogues over these prompts, as the row of that name. DataError where the file answers none of them.

    A turn that is not recorded has no answer, and lowers the coverage.
    """
    sheets = []
    for prompt in prompts:
        said = recorded.to(prompt)
        users = (prompt.messages[-1].content, *prompt.follow_ups)
        answers = [*said, *[None] * len(users)][: len(users)]
        reasons = ["" if one is not None else "no answer is recorded" for one in answers]
        turns = tuple(Turn(user, one, reason=why) for user, one, why in zip(users, answers, reasons, strict=True))
        sheets.append(Sheet("", name, prompt, turns))
    if all(turn.assistant is None for sheet in sheets for turn in sheet.turns):
        what = f"it answers none of the {len(prompts)} questions, which are matched by id or by text"
        raise DataError(where, what, "Name the answers to these questions, or the questions that were answered")
    return sheets
