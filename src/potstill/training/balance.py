"""The balance of a mixture's experts over one global batch, exact however that is cut; nothing for all other models."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from potstill.training.batch import Batch, Item
from potstill.training.experts import balance_loss
from potstill.training.team import Team, random_state, set_random_state


class Balance:
    """What the balance loss adds to one optimizer step.

    It couples the rows of a batch: how often each expert is chosen is counted first over all of it, without gradients;
    given that, the loss adds up over micro-batches (see `experts.balance_loss`).
    """

    def __init__(self, team: Team, rows: Sequence[Item], budget: int) -> None:
        self._team = team
        self._coefficient = team.scorer.balance_coefficient
        self._routed_E: Tensor | None = None
        if self._coefficient:
            state = random_state()  # dropout draws the same again when the gradients are computed
            counts = []
            with torch.no_grad():
                for batch, share, _ in team.rounds(rows, budget):
                    counts.append(team.route(batch)[1] * share)
            set_random_state(state)
            self._routed_E = team.total(torch.stack(counts).sum(0))

    def score(self, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """A micro-batch's scores, and its part of the balance loss, weighted."""
        if self._routed_E is None:
            return self._team.score(batch), 0.0
        scores, _, router_E = self._team.route(batch)
        part = balance_loss(self._routed_E, router_E, self._team.scorer.experts_per_token)
        return scores, self._coefficient * part

    def figures(self, part: Tensor | float, denominator: float) -> Mapping[str, Tensor]:
        """For the curve, whose sums are divided by the denominator: the balance loss itself is a mean already."""
        return {"balance": part.detach() * denominator} if isinstance(part, Tensor) else {}
