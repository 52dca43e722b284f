"""potstill's dialogues as FastChat's questions and answers; `recorded` reads such answers, `continued` judgments."""

from collections.abc import Iterable

from potstill.evaluation.fastchat import Answer, Id, Question
from potstill.evaluation.sheets import Sheet
from potstill.records import Prompt


def questions_of(prompts: Iterable[Prompt]) -> list[Question]:
    """Prompts as question.jsonl has them. What stands before a prompt's last message has no place there."""
    return [
        Question(
            question_id(prompt), prompt.category, (prompt.messages[-1].content, *prompt.follow_ups), prompt.references
        )
        for prompt in prompts
    ]


def answers_of(sheets: Iterable[Sheet]) -> list[Answer]:
    """What models answered, one choice each. A dialogue that lacks an answer is left out: FastChat knows no gaps."""
    whole = (sheet for sheet in sheets if all(turn.assistant is not None for turn in sheet.turns))
    return [
        Answer(question_id(sheet.prompt), sheet.model, (tuple(turn.assistant or "" for turn in sheet.turns),))
        for sheet in whole
    ]


def question_id(prompt: Prompt) -> Id:
    """FastChat's own ids are whole numbers."""
    name = prompt.id
    return int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name
