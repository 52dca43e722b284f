"""potstill's dialogues as FastChat's rows and back, so that either can go on with what the other began."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from potstill.evaluation.fastchat import Answer, Id, Judgment, Question
from potstill.evaluation.sheets import Ask, Sheet, Turn
from potstill.records import Message, Prompt

SINGLE, WITH_REFERENCE, LATER = "single-v1", "single-math-v1", "-multi-turn"
"""What FastChat calls the judge prompts: of a first turn, of one with reference answers, and what a later turn adds."""


def questions_of(prompts: Iterable[Prompt]) -> list[Question]:
    """Prompts as question.jsonl has them. What stands before a prompt's last message has no place there."""
    return [
        Question(_id(prompt.id), prompt.category, (_asked(prompt), *prompt.follow_ups), prompt.references)
        for prompt in prompts
    ]


def prompts_of(questions: Iterable[Question]) -> list[Prompt]:
    """FastChat's questions as prompts."""
    return [
        Prompt(
            id=str(row.question_id),
            messages=(Message(role="user", content=row.turns[0]),),
            follow_ups=row.turns[1:],
            references=row.reference,
            category=row.category,
        )
        for row in questions
    ]


def answers_of(sheets: Iterable[Sheet]) -> list[Answer]:
    """What models answered, one choice each. A dialogue that lacks an answer is left out: FastChat knows no gaps."""
    whole = (sheet for sheet in sheets if all(turn.assistant is not None for turn in sheet.turns))
    return [
        Answer(_id(sheet.prompt.id), sheet.model, (tuple(turn.assistant or "" for turn in sheet.turns),))
        for sheet in whole
    ]


def judgments_of(sheets: Iterable[Sheet], judge: str, ask: Ask | None = None) -> list[Judgment]:
    """Every judged turn as FastChat stores it; one that could not be read as failed.

    `ask` makes the request that a judge was sent, whose last message is kept beside the judgment.
    """
    return [
        Judgment(
            question_id=_id(sheet.prompt.id),
            model=sheet.model,
            judge=judge,
            prompt_name=(WITH_REFERENCE if sheet.prompt.references else SINGLE) + (LATER if number else ""),
            turn=number + 1,
            score=turn.score,
            judgment=turn.judgment,
            user_prompt=ask(sheet, number).messages[-1].content if ask else "",
        )
        for sheet in sheets
        for number, turn in enumerate(sheet.turns)
        if turn.assistant is not None
    ]


def sheets_of(suite: str, prompts: Sequence[Prompt], answers: Iterable[Answer]) -> list[Sheet]:
    """FastChat's answers as dialogues to be judged: of each model the first choice to each question it answered."""
    by_id = {prompt.id: prompt for prompt in prompts}
    sheets = []
    for row in answers:
        prompt = by_id.get(str(row.question_id))
        if prompt is not None:
            users = (_asked(prompt), *prompt.follow_ups)
            turns = tuple(Turn(user, said) for user, said in zip(users, row.choices[0], strict=False))
            sheets.append(Sheet(suite, row.model_id, prompt, turns))
    return sheets


def with_judgments(sheets: Iterable[Sheet], judgments: Iterable[Judgment], judge: str) -> list[Sheet]:
    """The dialogues with the grades that one judge gave before; the first where a turn was judged again."""
    first: dict[tuple[str, str, int], Judgment] = {}
    for row in judgments:
        if row.judge == judge:
            first.setdefault((row.model, str(row.question_id), row.turn), row)
    return [
        replace(sheet, turns=tuple(_graded(sheet, number, first) for number in range(len(sheet.turns))))
        for sheet in sheets
    ]


def _graded(sheet: Sheet, number: int, judged: Mapping[tuple[str, str, int], Judgment]) -> Turn:
    turn, row = sheet.turns[number], judged.get((sheet.model, sheet.prompt.id, number + 1))
    if row is None:
        return turn
    reason = "" if row.score is not None else "the stored judgment failed"
    return replace(turn, score=row.score, judgment=row.judgment, reason=reason)


def unjudged(sheets: Iterable[Sheet], *, failed: bool = False) -> list[tuple[str, Id, int]]:
    """What is left to judge: (model, question, turn) without a judgment; with `failed`, those that failed too."""
    return [
        (sheet.model, _id(sheet.prompt.id), number)
        for sheet in sheets
        for number, turn in enumerate(sheet.turns, start=1)
        if turn.assistant is not None and turn.score is None and (failed or not turn.judgment)
    ]


def _asked(prompt: Prompt) -> str:
    return prompt.messages[-1].content


def _id(name: str) -> Id:
    """FastChat's own ids are whole numbers."""
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name
