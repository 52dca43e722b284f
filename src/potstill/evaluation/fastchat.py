"""FastChat's files of MT-Bench (Zheng et al. 2023): questions, answers, judge prompts, judgments single and pairwise.

A run of potstill written so can be opened by FastChat, and one of FastChat's gone on with. What the rows come to is
said in `fastchat_scores`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.evaluation.scores import LARGEST
from potstill.evaluation.stored import number_or_none, read_typed, text_or_none, without, write_lines
from potstill.reading.files import Line, quote
from potstill.reading.found import ShapeError
from potstill.reading.turns import Columns, kind_of, string, strings

FAILED, ERROR, TIE = -1.0, "error", "tie"
"""What FastChat stores where it could read no grade, and no verdict; and what it calls a tie."""

Id = int | str


@dataclass(frozen=True)
class Question:
    """A row of question.jsonl."""

    question_id: Id
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As FastChat writes it."""
        row = {"question_id": self.question_id, "category": self.category, "turns": list(self.turns)}
        return {**row, **({"reference": list(self.reference)} if self.reference else {}), **self.rest}


@dataclass(frozen=True)
class Answer:
    """A row of model_answer/MODEL.jsonl or reference_answer/JUDGE.jsonl: each choice is one dialogue's answers."""

    question_id: Id
    model_id: str
    choices: tuple[tuple[str, ...], ...]
    answer_id: str = ""
    tstamp: float | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As FastChat writes it."""
        row = {"question_id": self.question_id, "answer_id": self.answer_id, "model_id": self.model_id}
        choices = [{"index": index, "turns": list(turns)} for index, turns in enumerate(self.choices)]
        return {**row, "choices": choices, "tstamp": self.tstamp, **self.rest}


@dataclass(frozen=True)
class JudgePrompt:
    """A row of judge_prompts.jsonl."""

    name: str
    type: str
    """single or pairwise."""
    system_prompt: str
    prompt_template: str
    output_format: str
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As FastChat writes it."""
        row = {"name": self.name, "type": self.type, "system_prompt": self.system_prompt}
        return {**row, "prompt_template": self.prompt_template, **self.rest, "output_format": self.output_format}


@dataclass(frozen=True)
class Judgment:
    """A row of JUDGE_single.jsonl: one turn of one model's answer to a question, graded."""

    question_id: Id
    model: str
    judge: str
    prompt_name: str
    """Which of the judge prompts: single-v1, single-math-v1-multi-turn, ..."""
    turn: int
    score: float | None
    """As it is stored. None: it failed."""
    judgment: str
    user_prompt: str = ""
    tstamp: float | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As FastChat writes it."""
        return {
            "question_id": self.question_id,
            "model": self.model,
            "judge": [self.judge, self.prompt_name],
            "user_prompt": self.user_prompt,
            "judgment": self.judgment,
            "score": _plain(FAILED if self.score is None else self.score),
            "turn": self.turn,
            "tstamp": self.tstamp,
            **self.rest,
        }


@dataclass(frozen=True)
class PairJudgment:
    """A row of JUDGE_pair.jsonl: one turn of two models' answers, compared twice. In game 2 the second stands first."""

    question_id: Id
    model_1: str
    model_2: str
    winners: tuple[str, str]
    """Of either game: model_1, model_2, tie or error."""
    judge: str
    prompt_name: str
    turn: int
    judgments: tuple[str, str]
    user_prompts: tuple[str, str] = ("", "")
    tstamp: float | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """Of the win, model_1's: 1 or 0 where both games agree on a winner, else 0.5. None where a game failed."""
        if ERROR in self.winners:
            return None
        first, second = self.winners
        return 0.5 if first != second or first == TIE else float(first == "model_1")

    def to_json(self) -> dict[str, Any]:
        """As FastChat writes it."""
        return {
            "question_id": self.question_id,
            "model_1": self.model_1,
            "model_2": self.model_2,
            "g1_winner": self.winners[0],
            "g2_winner": self.winners[1],
            "judge": [self.judge, self.prompt_name],
            "g1_user_prompt": self.user_prompts[0],
            "g1_judgment": self.judgments[0],
            "g2_user_prompt": self.user_prompts[1],
            "g2_judgment": self.judgments[1],
            "turn": self.turn,
            "tstamp": self.tstamp,
            **self.rest,
        }


Row = Question | Answer | JudgePrompt | Judgment | PairJudgment


def write_rows(path: Path, rows: Iterable[Row], *, append: bool = False) -> None:
    """A file as FastChat writes and reads it; `append` goes on behind the rows that stand there, as FastChat does."""
    write_lines(path, (row.to_json() for row in rows), append=append)


GRADED = frozenset({"question_id", "model", "judge", "score", "turn"})
"""The columns that a single judgment is told by."""
PAIRED = frozenset({"question_id", "model_1", "model_2", "g1_winner", "g2_winner"})
"""The columns that a pairwise judgment is told by."""


def is_single(row: Any) -> bool:
    """Whether a row is a single judgment by its columns."""
    return isinstance(row, Mapping) and row.keys() >= GRADED


def is_pair(row: Any) -> bool:
    """Whether a row is a pairwise judgment by its columns."""
    return isinstance(row, Mapping) and row.keys() >= PAIRED


def read_questions(lines: Iterable[Line], where: str) -> list[Question]:
    """The rows of question.jsonl."""
    return read_typed(lines, where, _question)


def read_answers(lines: Iterable[Line], where: str) -> list[Answer]:
    """The rows of a file in model_answer or reference_answer."""
    return read_typed(lines, where, _answer)


def read_judge_prompts(lines: Iterable[Line], where: str) -> list[JudgePrompt]:
    """The rows of judge_prompts.jsonl."""
    return read_typed(lines, where, _judge_prompt)


def read_judgments(lines: Iterable[Line], where: str) -> list[Judgment]:
    """The rows of JUDGE_single.jsonl."""
    return read_typed(lines, where, _judgment)


def read_pair_judgments(lines: Iterable[Line], where: str) -> list[PairJudgment]:
    """The rows of JUDGE_pair.jsonl."""
    return read_typed(lines, where, _pair_judgment)


def _question(row: Columns) -> Question:
    named = ("question_id", "category", "turns", "reference")
    return Question(
        question_id=_id(row),
        category=text_or_none(row, "category") or "",
        turns=strings(row.get("turns"), "'turns'"),
        reference=strings(row.get("reference") or [], "'reference'"),
        rest=without(row, named),
    )


def _answer(row: Columns) -> Answer:
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(one, Mapping) for one in choices):
        raise ShapeError(f"'choices' is {kind_of(choices)}; expected a list of objects with turns")
    return Answer(
        question_id=_id(row),
        model_id=string(row, "model_id"),
        choices=tuple(strings(choice.get("turns"), "'turns'") for choice in choices),
        answer_id=text_or_none(row, "answer_id") or "",
        tstamp=number_or_none(row, "tstamp", "seconds"),
        rest=without(row, ("question_id", "answer_id", "model_id", "choices", "tstamp")),
    )


def _judge_prompt(row: Columns) -> JudgePrompt:
    named = ("name", "type", "system_prompt", "prompt_template", "output_format")
    name, kind, system, template, output = (string(row, column) for column in named)
    return JudgePrompt(name, kind, system, template, output, without(row, named))


def _judgment(row: Columns) -> Judgment:
    score = number_or_none(row, "score", "a number, -1 where the judgment failed")
    if score is not None and abs(score) > LARGEST:
        raise ShapeError(f"'score' is {score:g}; expected a number from 1 to 10, -1 where the judgment failed")
    judge, prompt_name = _judge(row)
    named = ("question_id", "model", "judge", "user_prompt", "judgment", "score", "turn", "tstamp")
    return Judgment(
        question_id=_id(row),
        model=string(row, "model"),
        judge=judge,
        prompt_name=prompt_name,
        turn=_turn(row),
        score=None if score == FAILED else score,
        judgment=text_or_none(row, "judgment") or "",
        user_prompt=text_or_none(row, "user_prompt") or "",
        tstamp=number_or_none(row, "tstamp", "seconds"),
        rest=without(row, named),
    )


def _pair_judgment(row: Columns) -> PairJudgment:
    judge, prompt_name = _judge(row)
    named = {"question_id", "model_1", "model_2", "judge", "turn", "tstamp"}
    named |= {f"{game}_{what}" for game in ("g1", "g2") for what in ("winner", "user_prompt", "judgment")}
    return PairJudgment(
        question_id=_id(row),
        model_1=string(row, "model_1"),
        model_2=string(row, "model_2"),
        winners=(_winner(row, "g1_winner"), _winner(row, "g2_winner")),
        judge=judge,
        prompt_name=prompt_name,
        turn=_turn(row),
        judgments=(text_or_none(row, "g1_judgment") or "", text_or_none(row, "g2_judgment") or ""),
        user_prompts=(text_or_none(row, "g1_user_prompt") or "", text_or_none(row, "g2_user_prompt") or ""),
        tstamp=number_or_none(row, "tstamp", "seconds"),
        rest=without(row, named),
    )


def _id(row: Columns) -> Id:
    value = row.get("question_id")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ShapeError(f"'question_id' is {kind_of(value)}; expected a whole number or text")
    return value


def _turn(row: Columns) -> int:
    value = row.get("turn", 1)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ShapeError(f"'turn' is {value!r}; expected 1 or 2")
    return value


def _judge(row: Columns) -> tuple[str, str]:
    """The judge's model and the name of its prompt; a text is the model alone."""
    named = strings(row.get("judge"), "'judge'")
    if not 1 <= len(named) <= 2:
        raise ShapeError(f"'judge' names {len(named)}; expected the model and its prompt")
    return (named[0], named[1]) if len(named) == 2 else (named[0], "")


def _winner(row: Columns, column: str) -> str:
    value = string(row, column)
    if value not in ("model_1", "model_2", TIE, ERROR):
        raise ShapeError(f"{column!r} is {quote(value)!r}; expected model_1, model_2, tie or error")
    return value


def _plain(score: float) -> int | float:
    """A whole number without its point, as FastChat stores it."""
    return int(score) if score == int(score) else score
