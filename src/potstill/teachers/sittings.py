"""One request to a judge: which answers it shows, in which order, and whether it may ask for JSON."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.records import Answers
from potstill.sources import EndpointModel, Model
from potstill.teachers.base import request_seed
from potstill.teachers.pairwise import PREFERENCE


@dataclass(frozen=True)
class Sitting:
    """What is asked of a row, and the places of its answers in the order they are shown."""

    row: Answers
    subject: str
    """An aspect, "overall", or "preference"."""
    order: tuple[int, ...]
    turn: int = 0
    """Which of the orders this is, from 0."""

    @property
    def texts(self) -> list[str]:
        return [self.row.candidates[place].text for place in self.order]

    @property
    def shown(self) -> list[str]:
        """All that the judge reads and may quote."""
        return [*self.texts, *(message.content for message in self.row.prompt.messages)]


def shown_order(places: Sequence[int], turn: int, seed: int, row: str, subject: str) -> tuple[int, ...]:
    """The order of a turn, from 0: one drawn by seed, its reverse, another one drawn, its reverse."""
    name: list[str | int] = [row, subject, "order"]
    if turn >= 2:
        name.append(turn // 2)
    name += places if subject == PREFERENCE else ()
    order = list(places)
    random.Random(request_seed(seed, *name)).shuffle(order)
    return tuple(reversed(order) if turn % 2 else order)


def is_structured(judge: Model) -> bool:
    """Whether it answers in JSON that keeps to a schema."""
    return isinstance(judge.spec, EndpointModel) and judge.spec.structured
