"""Before the first step of a distillation: a student who is its own teacher has nothing to learn."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.objectives.divergence import Divergence
from potstill.training.batch import Batch, Item, collate
from potstill.training.lesson import Aims, Lesson
from potstill.training.probe import bare
from potstill.training.scoring import Scorer
from potstill.training.tellers import Present

TOLERANCES = {torch.bfloat16: 0.05, torch.float32: 1e-3}
"""Of the gradient, beside that of the likelihood, by what products are computed in. The two sides' logits are computed
in batches of other shapes, and so rounded otherwise."""
LEAST = 0.01
"""A gradient below this is as good as none: a student may know the rows by heart."""
PROBE_TOKENS = 512


def check_itself(scorer: Scorer, vocabulary: int, items: Sequence[Item]) -> None:
    """Compare the student with itself on some rows: loss and gradient have to be 0 but for rounding. ModelError.

    What is wrong with logits, targets, vocabularies or chunks shows here, whatever the data and the teacher are.
    """
    probe = _some(items)
    batch = collate(probe).to(scorer.device)
    alone = Aims(Divergence(), vocabulary)
    plain = Aims(Divergence(), vocabulary, divergence_weight=0.0, likelihood_weight=1.0)
    training = scorer.training
    scorer.eval()
    try:
        with scorer.products():
            told = (Present(scorer, vocabulary).tell(batch),)
            value, slope = _measure(scorer, replace(batch, lesson=Lesson(alone, told)))
            nll, scale = _measure(scorer, replace(batch, lesson=Lesson(plain, ())))
    finally:
        scorer.train(training)
    tolerance, scale = TOLERANCES.get(scorer.precision, 1e-3), max(scale, LEAST)
    if not (abs(value) <= tolerance * max(nll, 1.0) and slope <= tolerance * scale):
        raise ModelError(
            f"model {bare(scorer.model).name_or_path}",
            f"compared with itself, it has a divergence of {value:.3g} nats a token, and {slope / scale:.3g} of the "
            "likelihood's gradient; expected none",
            "Set dtype: float32, or use a model of another architecture",
        )


def _measure(scorer: Scorer, batch: Batch) -> tuple[float, float]:
    """The mean loss and the gradient's norm. Each parameter's gradient is dropped as soon as it is there."""
    squares: list[Tensor] = []

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        squares.append(parameter.grad.float().square().sum())
        parameter.grad = None

    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(take) for parameter in trained]  # type: ignore[no-untyped-call]
    try:
        loss = scorer(batch)[0].mean()
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return float(loss.detach()), float(torch.stack(squares).sum().sqrt())


def _some(items: Sequence[Item]) -> list[Item]:
    """The shortest rows, as many as come to some hundred tokens."""
    chosen: list[Item] = []
    size = 0
    for item in sorted(items, key=lambda item: item.tokens):
        if chosen and size + item.tokens > PROBE_TOKENS:
            break
        chosen.append(item)
        size += item.tokens
    return chosen
