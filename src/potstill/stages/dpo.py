"""dpo: teach a model which of two answers is preferred, against itself as it was (Rafailov et al. 2023)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from potstill.evaluation.statistics import Observation, share_estimate
from potstill.records import Pair
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from potstill.training.batch import Batch, Item
    from potstill.training.loop import Objective
    from potstill.training.scoring import Scorer

HELD_OUT_FILE = "held_out.jsonl"


class DpoConfig(TrainingConfig):
    """Direct preference optimisation on pairs. The reference is the model that training starts from."""

    kind: Literal["dpo"]
    model: ModelName
    """The model to start from, as a rule the one that SFT made."""
    data: Annotated[str | tuple[str, ...], Reference(("pairs",))]
    """The pairs, or several sources of them."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """The peak learning rate."""
    global_batch: int = Field(default=32, ge=1)
    """Pairs an optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """A pair whose longer conversation has more tokens is left out and counted; cutting would change what it says."""
    loss: Literal["sigmoid", "ipo", "hinge", "conservative", "robust"] = "sigmoid"
    """sigmoid is DPO itself; the others are its kin, see `potstill.objectives.preference`."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to its reference; smaller lets it move further."""
    flipped: float = Field(default=0.1, ge=0, lt=0.5)
    """The share of pairs taken to be labelled the wrong way round, for the conservative and the robust loss."""
    sft_term: float = Field(default=0.0, ge=0)
    """Adds this much of the chosen answer's mean -log p per token (Pang et al. 2024, eq. 2)."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, the reference's pass included, at a guess of 700 a pair."""
        trained = self.forecast(rows, 700)
        return Expected(rows=trained.rows, tokens=trained.tokens + trained.rows * 700)


def run(config: DpoConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, score every pair once with the reference, train, keep, and judge the held-out pairs."""
    from potstill.training.data import pair_items
    from potstill.training.loop import Task, train
    from potstill.training.models import choose_device, choose_precision, load_model, load_tokenizer, save_model
    from potstill.training.schedule import global_batches
    from potstill.training.scoring import build_scorer

    device = choose_device(config.device)
    tokenizer = load_tokenizer(inputs.model("model"))
    split = pair_items(
        tokenizer,
        named_rows(inputs, Pair),
        max_length=config.max_length,
        held_out=config.held_out,
        seed=work.seed,
        where=", ".join(data.name for data in inputs.data["data"]),
    )
    model = load_model(inputs.model("model"), tokenizer, device)
    scorer = build_scorer(model, choose_precision(config.dtype, device))
    loop = settings(config, device.type)
    # The held-out pairs on their own, so that before the first step their margins are 0 to the last bit.
    reference = answer_logps(scorer, split.train, loop.micro_tokens)
    reference |= answer_logps(scorer, split.held_out, loop.micro_tokens)
    order = global_batches([1] * len(split.train), config.global_batch, config.epochs, work.seed)
    steps = [[split.train[i] for i in batch] for batch in order]
    task = Task(steps, split.held_out, objective(config, reference), lambda item: 1.0)
    trained = train(scorer, task, loop, work.path, work.progress)
    judged = held_out_facts(scorer, split.held_out, reference, loop.micro_tokens, work)
    save_model(scorer.release(), tokenizer, work.path)
    work.drop(split.dropped)
    return {**split.facts(), **scorer.facts(), **trained, **judged}


def answer_logps(scorer: "Scorer", items: "Sequence[Item]", micro_tokens: int) -> dict[str, tuple[float, float]]:
    """The log-probability of each row's chosen and rejected answer, in nats, with dropout off and without gradients."""
    import torch

    from potstill.training.batch import micro_batches

    scorer.eval()
    found: dict[str, tuple[float, float]] = {}
    with torch.no_grad(), scorer.products():
        for batch in micro_batches(items, micro_tokens):
            sums = batch.by_answer(scorer(batch.to(scorer.device)).cpu()).tolist()
            found |= {row: (sums[2 * i], sums[2 * i + 1]) for i, row in enumerate(batch.row_ids)}
    return found


def objective(config: DpoConfig, reference: Mapping[str, tuple[float, float]]) -> "Objective":
    """The loss over a batch, with the figures that people watch; all are sums over pairs."""
    import torch

    from potstill.objectives.base import Loss
    from potstill.objectives.preference import margin, preference

    pair_loss = preference(config.loss, beta=config.beta, flipped=config.flipped)

    def compute(logp_N: "Tensor", batch: "Batch") -> Loss:
        logp_B2 = batch.by_answer(logp_N).view(-1, 2)
        reference_B2 = torch.tensor([reference[row] for row in batch.row_ids]).to(logp_B2)
        chosen_B, rejected_B = logp_B2.unbind(1)
        margin_B = margin(chosen_B, rejected_B, *reference_B2.unbind(1))
        loss = pair_loss(margin_B)
        total = loss.sum
        if config.sft_term:
            tokens_B2 = batch.by_answer(batch.weights_N).view(-1, 2).to(logp_B2)
            total = total - config.sft_term * (chosen_B / tokens_B2[:, 0]).sum()
        with torch.no_grad():
            figures = {
                "margin": config.beta * margin_B.sum(),
                "accuracy": ((margin_B.sign() + 1) / 2).sum(),  # a tie is half right
                "chosen_logp": chosen_B.sum(),
                "rejected_logp": rejected_B.sum(),
            }
        return Loss(total, loss.count, figures)

    return compute


def held_out_facts(
    scorer: "Scorer",
    items: "Sequence[Item]",
    reference: Mapping[str, tuple[float, float]],
    micro_tokens: int,
    work: Work,
) -> dict[str, Any]:
    """How often the kept model prefers the chosen answer, beside two who never saw a pair.

    `accuracy` goes by the implicit reward, `likelihood` by the reference's own log-probability, `longer` by length.
    """
    import json

    policy = answer_logps(scorer, items, micro_tokens)
    rows = []
    for item in items:
        chosen_tokens, rejected_tokens = (int(learn_L.sum()) for _, learn_L in item.answers)
        row: dict[str, Any] = {"id": item.row, "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}
        row["policy"] = [round(value, 4) for value in policy[item.row]]
        row["reference"] = [round(value, 4) for value in reference[item.row]]
        rows.append(row)
    (work.path / HELD_OUT_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not rows:
        return {}
    reward = [r["policy"][0] - r["reference"][0] - r["policy"][1] + r["reference"][1] for r in rows]
    likelihood = [r["reference"][0] - r["reference"][1] for r in rows]
    longer = [float(r["chosen_tokens"] - r["rejected_tokens"]) for r in rows]
    shares = {"accuracy": _share(reward), "likelihood": _share(likelihood), "longer": _share(longer)}
    return {"held_out_pairs": {"n": len(rows), **shares}}


def _share(leads: "Sequence[float]") -> dict[str, float | None]:
    """The share of leads above 0, ties for a half, with its 95% interval."""
    wins = (1.0 if lead > 0 else 0.5 if lead == 0 else 0.0 for lead in leads)
    share = share_estimate(Observation(str(place), "", win) for place, win in enumerate(wins))
    interval = {"mean": share.mean, "low": share.low, "high": share.high}
    return {name: None if value is None else round(value, 4) for name, value in interval.items()}


STAGE = Stage(config=DpoConfig, produces="model", run=run, trains=True)
