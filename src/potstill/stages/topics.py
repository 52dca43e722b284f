"""Stage `topics`: a tree of topics becomes prompts, asked by whoever might ask them.

UltraChat's questions about the world (Ding et al. 2023, section 3.2): topics, their parts, named things, and questions
about each. With a `domain` the tree is that of a field, and people of that field ask in their own voices (personas,
Ge et al. 2024).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from potstill.records import Message, Prompt
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, Harvest, Stage, Work
from potstill.stages.prompting import TOKENS_PER_PROMPT, Prompting, Writer, read_list, sieve
from potstill.teachers.base import Request, Teacher, connect, request_seed


class Topics(Prompting):
    """Have a teacher lay out a field as topics and their parts, and ask questions about each part."""

    PROMPTS: ClassVar[tuple[str, ...]] = ("topics", "entities", "personas", "questions", "domain")

    kind: Literal["topics"]
    branching: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(30, 36), min_length=1, max_length=6)
    """How many topics to ask for, then how many parts of each, and so on down; whatever the domain names is not asked
    for. The last ones are what questions are about."""
    entities: int = Field(default=0, ge=0)
    """Named things to ask for with each last part; further questions are about each of them."""
    personas: int = Field(default=0, ge=0)
    """People to invent for each topic, who ask about it beside those of the domain."""
    askers: int = Field(default=1, ge=1)
    """How many of these people ask about each part; nobody in particular where there are none."""
    questions: int = Field(default=10, ge=1)
    """Questions to ask for at once: about one part or named thing, by one asker."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        lists, top, leaves = self._tree()
        lists += (leaves if self.entities else 0) + (top if self.personas else 0)
        people = self.personas + (len(self.domain.personas) if self.domain else 0)
        calls = leaves * (1 + self.entities) * max(1, min(self.askers, people))
        tokens = (calls * (self.questions + 5) + 5 * lists) * TOKENS_PER_PROMPT
        return Expected(calls * self.questions, calls + lists, tokens)

    def _tree(self) -> tuple[int, int, int]:
        """Requests that it takes to grow the tree, how many topics it will have, and how many last parts."""
        given = [parts for _, parts in self.domain.tree()] if self.domain else []
        top, levels = len(given) or self.branching[0], self.branching[1:]
        open_topics = top - sum(bool(parts) for parts in given)
        leaves = sum(map(len, given)) + open_topics * (levels[0] if levels else 1)
        requests = (not given) + (open_topics if levels else 0)
        for width in levels[1:]:
            requests, leaves = requests + leaves, leaves * width
        return requests, top, leaves

    def for_trial(self, rows: int) -> Self:
        """A tree with as many leaves as so many questions need."""
        leaves, given = ceil(rows / self.questions), list(self.domain.tree()) if self.domain else []
        top = min(len(given) or self.branching[0], leaves)
        widths = (min(top, self.branching[0]), *(min(width, ceil(leaves / top)) for width in self.branching[1:]))
        few = dict(given[:top])
        topics = {name: parts[: ceil(leaves / top)] for name, parts in few.items()}
        domain = self.domain and self.domain.model_copy(update={"topics": topics})
        return self.model_copy(update={"branching": widths, "domain": domain})


@dataclass(frozen=True)
class _Node:
    """A topic or a part of one."""

    path: tuple[str, ...]
    given: tuple[str, ...] = ()
    """Its parts, where the recipe names them."""
    entity: str = ""

    @property
    def name(self) -> str:
        return "/".join(self.path)


def run(config: Topics, inputs: Inputs, work: Work) -> Facts:
    """Grow the tree level by level, then ask about its leaves."""
    writer = Writer(config, inputs, work.seed)
    with connect(inputs.model("teacher"), work.account) as teacher, work.harvest() as harvest:
        gardener = _Gardener(config, writer, teacher, harvest)
        top = gardener.topics()
        leaves = gardener.leaves(top)
        named = gardener.entities(leaves) if config.entities else []
        people = gardener.people(top)
        _ask(gardener, [*leaves, *named], people, work)
    if not harvest.rows:
        raise writer.nothing(inputs.model("teacher").name, harvest, "a question")
    return {
        "rows": harvest.rows,
        "dropped": harvest.reasons,
        "topics": len(top),
        "parts": len(leaves),
        "entities": len(named),
        "personas": len({person for group in people.values() for person in group}),
        "replies": writer.tally.facts(),
    }


@dataclass(frozen=True)
class _Gardener:
    config: Topics
    writer: Writer
    teacher: Teacher
    harvest: Harvest

    def topics(self) -> list[_Node]:
        """The first level."""
        domain = self.config.domain
        given = [_Node((topic,), parts) for topic, parts in domain.tree()] if domain else []
        return given or self._grow([_Node(())], self.config.branching[0])

    def leaves(self, nodes: list[_Node]) -> list[_Node]:
        """The last level. A topic of which no part could be read stays as it is."""
        levels = self.config.branching[1:]
        for wanted in levels or (0,):
            nodes = self._grow(nodes, wanted)
        return nodes

    def entities(self, leaves: list[_Node]) -> list[_Node]:
        """Named things of each leaf."""
        names = self._lists("entities", leaves, self.config.entities)
        return [replace(leaf, entity=name) for leaf, found in zip(leaves, names, strict=True) for name in found]

    def people(self, top: list[_Node]) -> dict[str, list[str]]:
        """Who may ask about each topic."""
        shared = list(self.config.domain.personas) if self.config.domain else []
        if not self.config.personas:
            return {node.path[0]: shared for node in top}
        invented = self._lists("personas", top, self.config.personas)
        return {node.path[0]: shared + found for node, found in zip(top, invented, strict=True)}

    def _grow(self, nodes: list[_Node], wanted: int) -> list[_Node]:
        bare = [node for node in nodes if not node.given] if wanted else []
        asked = dict(zip((node.path for node in bare), self._lists("topics", bare, wanted), strict=True))
        grown = []
        for node in nodes:
            parts = node.given or asked.get(node.path, ())
            whole = [node] if node.path else []
            grown += [_Node((*node.path, part)) for part in parts] or whole
        return grown

    def _lists(self, prompt: str, nodes: list[_Node], wanted: int) -> list[list[str]]:
        """What is asked for of each node: at most `wanted`, each once."""
        requests = (
            self.writer.request(prompt, prompt, node.name, reads=read_list, path=node.path, wanted=wanted)
            for node in nodes
        )
        found = []
        for node, reply in zip(nodes, self.teacher.complete(requests), strict=True):
            once: dict[str, str] = {}
            for item in self.writer.items(self.harvest.drop, f"{prompt}-{node.name}".rstrip("-"), reply):
                once.setdefault(item.lower(), item)
            found.append(list(once.values())[:wanted])
        return found


def _ask(gardener: _Gardener, subjects: Sequence[_Node], people: Mapping[str, list[str]], work: Work) -> None:
    """Questions about every subject, each asker's by themselves."""
    config, writer, harvest = gardener.config, gardener.writer, gardener.harvest
    known = sieve(config)
    asked = list(_askers(config, subjects, people, work.seed))

    def requests() -> Iterator[Request]:
        for number, (node, persona) in enumerate(asked):
            yield writer.request(
                "questions",
                "questions",
                number,
                reads=read_list,
                path=node.path,
                entity=node.entity,
                persona=persona,
                wanted=config.questions,
            )

    replies = gardener.teacher.complete(requests())
    for number, ((node, persona), reply) in enumerate(zip(asked, replies, strict=True)):
        for place, question in enumerate(writer.items(harvest.drop, f"topic-{number}", reply)):
            name = f"topic-{number}-{place}"
            if known.take(harvest, name, question):
                messages = (Message(role="user", content=question),)
                harvest.keep(Prompt(id=name, messages=messages, category=node.path[0], persona=persona))
        work.progress(number + 1, len(asked), "requests", prompts=harvest.rows)


def _askers(
    config: Topics, subjects: Sequence[_Node], people: Mapping[str, list[str]], seed: int
) -> Iterator[tuple[_Node, str]]:
    for node in subjects:
        known = people[node.path[0]]
        chance = random.Random(request_seed(seed, "askers", node.name, node.entity))
        for persona in chance.sample(known, min(config.askers, len(known))) or [""]:
            yield node, persona


STAGE = Stage(config=Topics, produces="prompts", run=run)
