"""Held-out reward accuracy: how often a model's implicit reward prefers the answer that was preferred.

The implicit reward of DPO (Rafailov et al. 2023, eq. 5) is beta (log p - log p_reference); a pair is right where the
chosen answer's is the higher, whatever beta. An accuracy means little alone, so three baselines stand beside it on the
same pairs: the longer answer, and the reference model's own likelihood, summed and per token. A tie counts one half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from potstill.evaluation.likelihood import AnswerScorer
from potstill.evaluation.statistics import Observation
from potstill.records import Message, Pair
from potstill.sources import Model
from potstill.teachers.base import Exchange

LONGER = "longer answer"


@dataclass(frozen=True)
class PairLikelihood:
    """Log-probabilities in nats of both answers, summed and per token; None where an answer has no token."""

    chosen: float
    rejected: float
    chosen_per_token: float | None
    rejected_per_token: float | None


def pair_likelihoods(model: Model, pairs: Sequence[Pair], scorer: AnswerScorer) -> list[PairLikelihood]:
    """Both answers of every pair under one model."""
    exchanges = [Exchange(p.id, p.prompt, answer, p.tools) for p in pairs for answer in (p.chosen, p.rejected)]
    scored = scorer(model, exchanges)
    return [
        PairLikelihood(a, b, a / a_tokens if a_tokens else None, b / b_tokens if b_tokens else None)
        for (a, a_tokens), (b, b_tokens) in zip(scored[::2], scored[1::2], strict=True)
    ]


def baselines(
    pairs: Sequence[Pair], reference: str, likelihoods: Sequence[PairLikelihood]
) -> dict[str, list[Observation]]:
    """What is right without any preference training, under the names of the report's rows."""
    per_token = [
        None
        if x.chosen_per_token is None or x.rejected_per_token is None
        else x.chosen_per_token - x.rejected_per_token
        for x in likelihoods
    ]
    return {
        LONGER: _right(pairs, [float(_length(p.chosen) - _length(p.rejected)) for p in pairs]),
        f"{reference} likelihood": _right(pairs, [x.chosen - x.rejected for x in likelihoods]),
        f"{reference} likelihood per token": _right(pairs, per_token),
    }


def reward_accuracy(
    pairs: Sequence[Pair], policy: Sequence[PairLikelihood], reference: Sequence[PairLikelihood]
) -> list[Observation]:
    """One a pair: 1 where the model, against the reference, prefers the chosen answer."""
    margins = [(p.chosen - r.chosen) - (p.rejected - r.rejected) for p, r in zip(policy, reference, strict=True)]
    return _right(pairs, margins)


def _right(pairs: Sequence[Pair], margins: Sequence[float | None]) -> list[Observation]:
    return [
        Observation(
            pair.id, "", None if margin is None else 0.5 if margin == 0 else float(margin > 0), category=pair.category
        )
        for pair, margin in zip(pairs, margins, strict=True)
    ]


def _length(messages: Sequence[Message]) -> int:
    """In characters, so that it is the same for every model."""
    return sum(len(message.content) for message in messages)
