"""Votes as they come: a line each, durable before a name is shown; and how the models stand by them.

The file has the shape of Chatbot Arena's votes, so `import` reads pairs from it as it lies: a tie makes none, and is
counted there.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

from potstill.artifact import add_line, digest
from potstill.evaluation.statistics import Estimate, Observation, share_estimate
from potstill.layouts import to_line
from potstill.reading.turns import as_json
from potstill.teachers.base import Request

VOTES_FILE = "arena.jsonl"
"""In a run's folder."""

Vote = Literal["left", "right", "tie", "both_bad"]
WINNERS: dict[Vote, str] = {"left": "model_a", "right": "model_b", "tie": "tie", "both_bad": "tie (bothbad)"}
"""As Chatbot Arena writes them; `a` stood on the left."""
SHARES = {"model_a": 1.0, "model_b": 0.0}
"""What the left model gets of a vote; of a tie, half."""


@dataclass(frozen=True)
class Side:
    """One model's answer."""

    model: str
    artifact: str
    """Which folder it was loaded from: what the name stood for."""
    text: str
    finish: str


@dataclass(frozen=True)
class Battle:
    """One question and two answers, in the order in which they are shown."""

    id: str
    """Drawn at random: it tells nothing."""
    request: Request
    left: Side
    right: Side

    @property
    def question(self) -> str:
        """What was asked."""
        return self.request.messages[-1].content


def keep(folder: Path, battle: Battle, vote: Vote, voter: str) -> None:
    """Add a vote to the run's file. When this returns it is on the disk."""
    assert vote in get_args(Vote)
    request, sides = battle.request, (battle.left, battle.right)
    told = [message.content for message in request.messages if message.role == "system"]

    def conversation(side: Side) -> list[dict[str, str]]:
        return [{"role": "user", "content": battle.question}, {"role": "assistant", "content": side.text}]

    row = {
        "question_id": battle.id,
        "model_a": sides[0].model,
        "model_b": sides[1].model,
        "winner": WINNERS[vote],
        "judge": voter,
        "conversation_a": conversation(sides[0]),
        "conversation_b": conversation(sides[1]),
        **({"system": told[0]} if told else {}),
        "artifact_a": sides[0].artifact,
        "artifact_b": sides[1].artifact,
        "finish_a": sides[0].finish,
        "finish_b": sides[1].finish,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "max_tokens": request.max_tokens,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    add_line(folder / VOTES_FILE, to_line(row))


@dataclass(frozen=True)
class Cast:
    """A vote as it counts."""

    id: str
    question: str
    left: str
    right: str
    winner: str


def read_votes(folder: Path) -> Iterator[Cast]:
    """The votes of a run, in order. A line that a power cut tore is no vote."""
    path = folder / VOTES_FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            row = as_json(line)
            if not isinstance(row, dict):
                continue
            try:
                asked = json.dumps([row.get("system"), row["conversation_a"][0]["content"]])
                names = (row["question_id"], digest(asked), row["model_a"], row["model_b"], row["winner"])
            except (LookupError, TypeError):
                continue
            if all(isinstance(name, str) for name in names):
                yield Cast(*names)


@dataclass(frozen=True)
class Standing:
    """How one model did, or one against another."""

    model: str
    against: str
    """Empty: against all."""
    wins: int
    losses: int
    ties: int
    share: Estimate
    """Of the votes, a tie counted half, with its interval. Votes on one question depend on each other."""


def standings(votes: Iterable[Cast]) -> list[Standing]:
    """Each model against all others, the best first, and then each two against each other."""
    cast = list(votes)
    names = sorted({name for vote in cast for name in (vote.left, vote.right)})
    alone = [_standing(cast, name, "") for name in names]
    alone.sort(key=lambda one: -_order(one))
    pairs = [_standing(cast, one, other) for one, other in combinations([one.model for one in alone], 2)]
    return [*alone, *(pair for pair in pairs if pair.share.n and len(names) > 2)]


def _order(standing: Standing) -> float:
    return (standing.wins + standing.ties / 2) / (standing.wins + standing.losses + standing.ties)


def _standing(votes: Iterable[Cast], model: str, against: str) -> Standing:
    observations, counts = [], Counter[str]()
    for vote in votes:
        sides = (vote.left, vote.right)
        if model not in sides or (against and against not in sides):
            continue
        left_gets = SHARES.get(vote.winner, 0.5)
        value = left_gets if vote.left == model else 1 - left_gets
        counts["wins" if value == 1 else "losses" if value == 0 else "ties"] += 1
        observations.append(Observation(vote.question, vote.id, value))
    return Standing(model, against, counts["wins"], counts["losses"], counts["ties"], share_estimate(observations))
