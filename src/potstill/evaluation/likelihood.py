"""Held-out answer loss: how surprised a model is by given answers, in nats per token. Lower is better."""

from collections.abc import Sequence
from typing import Protocol

from potstill.evaluation.statistics import Observation
from potstill.records import Chat
from potstill.sources import Model
from potstill.teachers.base import Exchange


class AnswerScorer(Protocol):
    """`teachers.local.answer_logprobs`, or what a test puts in its place."""

    def __call__(self, model: Model, exchanges: list[Exchange], /) -> list[tuple[float, int]]:
        """The summed log-probability of each answer in nats, and over how many tokens."""
        ...


def exchanges(chats: Sequence[Chat]) -> list[tuple[Chat, int, Exchange]]:
    """Every assistant turn that is to be learnt, counted from 1, with what stands before it."""
    found: list[tuple[Chat, int, Exchange]] = []
    for chat in chats:
        turn = 0
        for i, message in enumerate(chat.messages):
            if message.role == "assistant":
                turn += 1
                if message.train and i > 0:
                    found.append((chat, turn, Exchange(chat.id, chat.messages[:i], (message,), chat.tools)))
    return found


def answer_loss(model: Model, chats: Sequence[Chat], scorer: AnswerScorer) -> list[Observation]:
    """One a turn, weighted by its tokens, so that their mean is the loss per token over all of them."""
    turns = exchanges(chats)
    scored = scorer(model, [exchange for _, _, exchange in turns])
    return [
        Observation(chat.id, str(turn), -logp / tokens if tokens else None, float(tokens), chat.category)
        for (chat, turn, _), (logp, tokens) in zip(turns, scored, strict=True)
    ]
