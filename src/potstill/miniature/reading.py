"""A question's text read back into a task, as any reader of the text would: teachers, judge, tests."""

import re
from collections.abc import Iterator
from dataclasses import replace

from potstill.miniature.tasks import (
    DETAILS,
    ORDERS,
    PERSONAS,
    VERBS,
    Ask,
    Code,
    Compare,
    Describe,
    Extract,
    Fact,
    Sum,
    Task,
)
from potstill.miniature.world import ATTRIBUTES, UNRECORDED, World


def understand(world: World, turns: list[str]) -> Ask | None:
    """What the last of a user's turns asks, given those before; None where it is none of the miniature's questions."""
    ask: Ask | None = None
    for turn in turns:
        ask = _read_first(world, turn) or (_read_next(world, turn, ask) if ask else None)
    return ask


def _read_first(world: World, text: str) -> Ask | None:
    persona = ""
    if found := re.match(r"You are a (\w+)\. (.*)", text, re.S):
        persona, text = found.groups()
        if persona not in PERSONAS:
            return None
    text, style = _read_wish(text)
    for task in _read_task(world, text):
        return Ask(task, style, persona)
    return None


def _read_wish(text: str) -> tuple[str, str]:
    for pattern, style in (
        (r"\s*Answer in one word\.\s*$", "one word"),
        (r"\s*Start with the word (\w+)\.\s*$", "start"),
        (r"\s*End with the word (\w+)\.\s*$", "end"),
    ):
        if found := re.search(pattern, text):
            return text[: found.start()], " ".join((style, *found.groups()))
    return text.strip(), ""


def _read_task(world: World, text: str) -> Iterator[Task]:
    if found := re.search(r"\bthe (\w+) of (\w+)[?.]$", text):
        entity = world.by_name.get(found[2].lower())
        if entity and found[1] in (*ATTRIBUTES[entity.sort], *UNRECORDED):
            yield Fact(entity, found[1])
    if found := re.search(r"(\d+) (plus|minus|times) (\d+)[?.]$", text):
        yield Sum(int(found[1]), found[2], int(found[3]))
    if found := re.fullmatch(r"(\w+) is (\w+) than (\w+)\. (\w+) is \2 than (\w+)\. Who is the (\w+)\?", text):
        yield from _read_compare(*found.groups())
    if found := re.match(
        r"Read this note: (\w+) sold (\d+) (\w+) to (\w+) on (\w+)\. (?:Who|What) is the (\w+)\?$", text
    ):
        seller, number, item, buyer, day, asked = found.groups()
        if asked in DETAILS:
            yield Extract(seller, buyer, number, item, day, asked)
    if (found := re.fullmatch(r"Write a Python function named (\w+) that (\w+) (\w) and (\w)\.", text)) and found[
        2
    ] in VERBS:
        yield Code(*found.groups())
    if found := re.fullmatch(r"Write (one sentence|two sentences) about (\w+)\.", text):
        entity = world.by_name.get(found[2].lower())
        if entity:
            yield Describe(entity, 1 if found[1].startswith("one") else 2)


def _read_compare(a: str, relation: str, b: str, c: str, d: str, asked: str) -> Iterator[Compare]:
    order = next((order for order in ORDERS if order[0] == relation and asked in order[1:]), None)
    if order and b == c:
        yield Compare((a, b, d), order, asked, swapped=False)
    elif order and a == d:
        yield Compare((c, a, b), order, asked, swapped=True)


def _read_next(world: World, text: str, ask: Ask) -> Ask | None:
    task = ask.task
    if found := re.fullmatch(r"Say that again\.(.*)", text, re.S):
        return replace(ask, style=_read_wish(found[1])[1])
    if isinstance(task, Fact) and (found := re.fullmatch(r"And what is its (\w+)\?", text)):
        return replace(ask, task=replace(task, attribute=found[1]), style="")
    if isinstance(task, Compare) and (found := re.fullmatch(r"And who is the (\w+)\?", text)):
        return replace(ask, task=replace(task, asked=found[1]), style="") if found[1] in task.order else None
    if isinstance(task, Extract) and (found := re.fullmatch(r"And (?:who|what) is the (\w+)\?", text)):
        return replace(ask, task=task.asking(found[1]), style="") if found[1] in DETAILS else None
    if isinstance(task, Code):
        if text == "Now write the function again.":
            return ask
        if found := re.fullmatch(r"Now name the function (\w+) instead\.", text):
            return replace(ask, task=replace(task, name=found[1]))
    if isinstance(task, Describe) and (found := re.fullmatch(r"Now write (one|two) sentences? about it\.", text)):
        return replace(ask, task=replace(task, sentences=1 if found[1] == "one" else 2))
    return None
