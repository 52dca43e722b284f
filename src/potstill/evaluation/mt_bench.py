"""MT-Bench (Zheng et al. 2023): dialogues of two turns in eight categories, each turn graded 1 to 10 by a judge.

A turn's score is what the judge wrote in brackets; the model's is the mean over all turns that have one. Reading a
grade: the first [[x]], else the first [x], else none at all. "[[8/10]]" is not of that form and is no grade: FastChat
stored such replies as failed, and its published means can only be reproduced that way.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from potstill.evaluation.sheets import Ask, Sheet, Turn
from potstill.prompts import render_prompt
from potstill.records import Message, Prompt
from potstill.teachers.base import Request, request_seed

LOWEST, HIGHEST = 1.0, 10.0
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""By category; greedy in every other. The judge is always greedy."""
WITHOUT_REFERENCES = ("writing", "roleplay", "extraction", "stem", "humanities")
"""The benchmark's categories whose judge is shown no reference answer, though its file holds some. In math, reasoning
and coding it is."""

_DOUBLE = re.compile(r"\[\[(\d++(?:\.\d*+)?)\]\]")
_SINGLE = re.compile(r"\[(\d++(?:\.\d*+)?)\]")


def temperature(category: str) -> float:
    """The sampling temperature of the answers to a category."""
    return TEMPERATURES.get(category, 0.0)


def ask_judge(max_tokens: int, seed: int) -> Ask:
    """How a judge is asked for a turn: the dialogue up to it, with its `references`."""

    def ask(sheet: Sheet, turn: int) -> Request:
        messages = (
            Message(role="system", content=render_prompt("mt_bench_system")),
            Message(role="user", content=render_prompt("mt_bench_user", turns=shown(sheet, turn))),
        )
        return Request(messages, max_tokens, seed=request_seed(seed, sheet.prompt.id, "mt_bench", turn + 1))

    return ask


def references(prompt: Prompt) -> tuple[str, ...]:
    """The reference answers that a judge is shown. Of categories that are none of the benchmark's, all there are."""
    return () if prompt.category in WITHOUT_REFERENCES else prompt.references


def shown(sheet: Sheet, turn: int) -> list[dict[str, str]]:
    """The dialogue up to that turn, with what the prompt itself holds before its last message."""
    known = (*references(sheet.prompt), *[""] * len(sheet.turns))
    parts: list[dict[str, str]] = []
    said: list[str] = []
    for message in sheet.prompt.messages[:-1]:
        if message.role == "assistant":
            parts.append({"user": "\n\n".join(said), "reference": "", "assistant": message.content})
            said = []
        else:
            said.append(message.content)
    for i, each in enumerate(sheet.turns[: turn + 1]):
        user = "\n\n".join([*said, each.user])
        parts.append({"user": user, "reference": known[i], "assistant": each.assistant or ""})
        said = []
    return parts


def read_grade(turn: Turn, judgment: str) -> Turn:
    """The turn with the grade that a judgment gives it."""
    score = parse_grade(judgment, quoted=[turn.assistant or "", turn.user])
    reason = "" if score is not None else "the judgment holds no grade of the form [[x]]"
    return replace(turn, judgment=judgment, score=score, reason=reason)


def parse_grade(judgment: str, quoted: Iterable[str] = ()) -> float | None:
    """The grade in a judgment, or None where it gives none that can be told from a quotation.

    `quoted` are the texts that the judge read. A bracketed number that stands in one of them may be the judge's
    quotation of it: it counts only where it closes the judgment on a line that is not itself a quotation.
    """
    texts = list(quoted)
    for form in (_DOUBLE, _SINGLE):
        matches = list(form.finditer(judgment))
        if not matches:
            continue
        said = dict.fromkeys((match[0], match[1]) for match in matches)
        own = next((number for words, number in said if not any(words in text for text in texts)), None)
        if own is not None:
            return _in_range(own)
        return _in_range(matches[-1][1]) if _closes(judgment, matches[-1], texts) else None
    return None


def _closes(judgment: str, match: re.Match[str], texts: list[str]) -> bool:
    """The match ends the judgment, and its line, up to it, was not written by someone else."""
    line = judgment[judgment.rfind("\n", 0, match.start()) + 1 : match.end()].strip()
    return not judgment[match.end() :].strip(" \n\t.*") and not any(line in text for text in texts)


def _in_range(number: str) -> float | None:
    """Published judgments hold zeros, which count; a number over ten is no grade."""
    return float(number) if float(number) <= HIGHEST else None
