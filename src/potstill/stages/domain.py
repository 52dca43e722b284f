"""What an assistant is to know about: the recipe's `domain`, which the stages that write prompts and dialogues read."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from potstill.sources import Spec
from potstill.stages.asking import Prompts

Words = Annotated[str, Field(min_length=1)]
Topics = dict[Words, tuple[Words, ...]] | tuple[Words, ...]


class Domain(Spec):
    """What the assistant is for. It stands once in a recipe, under `domain`; each stage that asks for prompts or
    dialogues takes it from there, unless it has one of its own. `domain: null` on a stage means none."""

    name: Words
    """In a word or two: law, medicine, finance, science."""
    about: str = ""
    """A sentence or two: what is asked, by whom, and for what."""
    topics: Topics = ()
    """What it is about, [contracts, torts], each topic with its parts if you like:
    {contracts: [formation, breach], torts: []}. What is left open the teacher fills in."""
    personas: tuple[Words, ...] = ()
    """Who asks, a line each: "a tenant whose landlord keeps the deposit"."""
    language: str = ""
    """The language that everybody writes in. Default: that of the prompt files, English."""
    system: str | None = None
    """How the assistant is to behave: the system turn of dialogues, where neither prompt nor stage has one."""
    avoid: tuple[Words, ...] = ()
    """What nobody is to ask about."""

    @field_validator("topics")
    @classmethod
    def _each_once(cls, topics: Topics) -> Topics:
        names = list(topics)
        groups = [names, *(topics.values() if isinstance(topics, dict) else ())]
        for group in groups:
            seen: set[str] = set()
            for name in group:
                if name in seen:
                    raise ValueError(f"the topic '{name}' stands there twice")
                seen.add(name)
        return topics

    def tree(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each topic with its parts, in the order in which they are written."""
        if isinstance(self.topics, dict):
            yield from self.topics.items()
        else:
            yield from ((topic, ()) for topic in self.topics)


def domain_text(prompts: Prompts, domain: Domain | None) -> str:
    """What the prompt `domain` says of it, for the other prompts to hold; nothing where there is none."""
    if domain is None:
        return ""
    blanks = {"field": domain.name, "about": domain.about, "avoid": domain.avoid, "language": domain.language}
    return prompts.render("domain", **blanks).strip()
