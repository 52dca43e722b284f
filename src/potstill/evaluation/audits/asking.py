"""What audits ask models for: several answers to each prompt, and answers to prompts that differ in one attribute."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from potstill.curation.phrases import refusal
from potstill.evaluation.audits.inherited_bias import COUNTERPART, WRITTEN, Outcome
from potstill.evaluation.sheets import Sheet, Tick
from potstill.records import Prompt
from potstill.teachers.base import Request, Teacher, request_seed

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Sampling:
    """How several answers to a prompt are drawn."""

    each: int
    temperature: float
    max_tokens: int
    seed: int


def take_samples(teacher: Teacher, prompts: Sequence[Prompt], how: Sampling, tick: Tick) -> dict[str, list[str]]:
    """The answers to each prompt; those that never came are left out."""
    requests = (
        Request(
            prompt.messages,
            how.max_tokens,
            how.temperature,
            seed=request_seed(how.seed, prompt.id, "audit", number),
            sample=number,
        )
        for prompt in prompts
        for number in range(how.each)
    )
    replies = iter(teacher.complete(requests))
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        for _ in range(how.each):
            reply = next(replies)
            if reply.finish in ("stop", "length"):
                found.setdefault(prompt.id, []).append(reply.text)
            tick()
    return found


@dataclass(frozen=True)
class Variant:
    """A prompt with one value of an attribute in it."""

    prompt: Prompt
    template: str
    attribute: str
    value: str


def variants(templates: Sequence[Prompt], attributes: Mapping[str, Sequence[str]]) -> Iterator[Variant]:
    """Every prompt that holds an attribute's slot, {name} say, with each of its values; another attribute's slot in it
    gets that one's first value. A prompt that has its counterpart beside it is asked as both, under its category."""
    usual = {attribute: values[0] for attribute, values in attributes.items()}
    for template in templates:
        if template.counterpart:
            yield from _both(template)
            continue
        there = {slot for message in template.messages for slot in SLOT.findall(message.content)}
        for attribute, values in attributes.items():
            for value in values if attribute in there else ():
                yield Variant(_filled(template, attribute, {**usual, attribute: value}), template.id, attribute, value)


def _both(template: Prompt) -> Iterator[Variant]:
    last = template.messages[-1]
    other = template.model_copy(
        update={
            "id": f"{template.id}/{COUNTERPART}",
            "messages": (*template.messages[:-1], last.model_copy(update={"content": template.counterpart})),
            "follow_ups": (),
        }
    )
    yield Variant(template.model_copy(update={"follow_ups": ()}), template.id, template.category, WRITTEN)
    yield Variant(other, template.id, template.category, COUNTERPART)


def _filled(template: Prompt, attribute: str, values: Mapping[str, str]) -> Prompt:
    def fill(text: str) -> str:
        return SLOT.sub(lambda slot: values.get(slot[1], slot[0]), text)

    return template.model_copy(
        update={
            "id": f"{template.id}/{attribute}={values[attribute]}",
            "messages": tuple(m.model_copy(update={"content": fill(m.content)}) for m in template.messages),
            "follow_ups": (),
            "references": tuple(map(fill, template.references)),
        }
    )


def outcomes(asked: Sequence[Variant], sheets: Sequence[Sheet], width: float) -> list[Outcome]:
    """What came of each prompt; `width`: of the scale that its score is on."""
    return [
        Outcome(
            variant.template,
            variant.attribute,
            variant.value,
            len(sheet.turns[0].assistant.split()),
            refusal(sheet.turns[0].assistant) is not None,
            None if sheet.turns[0].score is None else sheet.turns[0].score / width,
        )
        for variant, sheet in zip(asked, sheets, strict=True)
        if sheet.turns[0].assistant is not None
    ]
