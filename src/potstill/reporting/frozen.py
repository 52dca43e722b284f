"""What report.html keeps of a run beside its scores: the graph, the first rows of every artifact, every question.

The page stays small: so many rows of each artifact, so many characters of a text, so many of all answers together.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from potstill.reporting.graph import GLYPHS, WORDS
from potstill.reporting.questions import (
    ANSWERS_FILE,
    Question,
    ordered,
    reach_of,
    read_questions,
    sides_of,
    signed,
    strip_of,
    suites_with_answers,
)  # fmt: skip
from potstill.reporting.shown import Row, Said
from potstill.reporting.stage_views import graph, stage_table, stage_view

ROWS_SHOWN = 3
LONGEST_ROW_TEXT = 2_000
LONGEST_ANSWER = 1_500
ALL_ANSWERS = 1_500_000
"""Characters of all questions' answers and judgments together: what is beyond is left to `potstill view`."""
MOST_STAGES = 100
"""Stages whose rows stand on the page; a larger run folds its families anyway."""


def frozen_href(name: str) -> str:
    """Where on the page a stage stands."""
    return f"#stage-{name}"


def frozen(run: Any) -> dict[str, Any]:
    """What the page's template takes; nothing where the run is not known."""
    if run is None:
        return {"stage_pages": [], "questions": []}
    return {
        "graph": graph(run.nodes, frozen_href),
        "table": stage_table(run.nodes),
        "stage_pages": [_stage(node, run) for node in list(run.nodes.values())[:MOST_STAGES]],
        "rows_shown": ROWS_SHOWN,
        "questions": _questions(run),
    }


def _stage(node: Any, run: Any) -> dict[str, Any]:
    """Of a family the first member that is sealed."""
    members = [run.stages[name] for name in node.members] or [node]
    shown = next((one for one in members if one.artifact is not None), node)
    view = stage_view(shown, ROWS_SHOWN)
    if view["sealed"]:
        view["rows"] = [_short(row) for row in view["rows"]]
    return {"stage": node, "view": view, "glyph": GLYPHS[node.state], "word": WORDS[node.state]}


def _short(row: Row) -> Row:
    """With long texts cut."""
    sides = tuple(
        replace(
            side,
            turns=tuple(map(_cut, side.turns)),
            ratings=tuple(replace(one, words=_end(one.words)) for one in side.ratings),
        )
        for side in row.sides
    )  # fmt: skip
    values = tuple((name, _end(value)) for name, value in row.values)
    return replace(row, turns=tuple(map(_cut, row.turns)), sides=sides, values=values)


def _cut(turn: Said) -> Said:
    return replace(turn, text=_end(turn.text), calls=tuple(map(_end, turn.calls)))


def _end(text: str) -> str:
    more = len(text) - LONGEST_ROW_TEXT
    return text if more <= 0 else f"{text[:LONGEST_ROW_TEXT]} … {more:,} characters more"


def _questions(run: Any) -> list[dict[str, Any]]:
    """Every suite with answers, the widest differences first, as far as there is room."""
    found, room = [], ALL_ANSWERS
    evaluations = run.sealed("scores")
    for stage in evaluations:
        file = stage.artifact.path / ANSWERS_FILE
        for suite, models in suites_with_answers(file).items():
            shown = _suite(read_questions(file, suite, LONGEST_ANSWER), models, room)
            room -= shown.pop("size")
            name = suite if len(evaluations) == 1 else f"{stage.name}: {suite}"
            found.append({"name": name, "models": models, **shown})
    return [one for one in found if one["rows"]]


def _suite(every: list[Question], models: list[str], room: int) -> dict[str, Any]:
    later, earlier = models[-1], models[max(0, len(models) - 2)]
    order, rows, size = ordered(every, later, earlier, "difference"), [], 0
    far = reach_of(order, later, earlier)
    for question in order:
        size += _size(question)
        if size > room:
            break
        rows.append(_row(question, models, later, earlier, far))
    return {"later": later, "earlier": earlier, "rows": rows, "left_out": len(order) - len(rows), "size": size}


def _size(question: Question) -> int:
    turns = (turn for answered in question.answers.values() for turn in answered.turns)
    return 600 + sum(300 + len(turn.user[:600]) + len(turn.text) + len(turn.judgment) for turn in turns)


def _row(question: Question, models: list[str], later: str, earlier: str, far: float) -> Mapping[str, Any]:
    return {
        "question": question,
        "difference": signed(question.difference(later, earlier)),
        "strip": strip_of(question, later, earlier, far),
        "sides": sides_of(question, models),
    }
