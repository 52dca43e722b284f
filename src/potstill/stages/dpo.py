"""dpo: teach a model which of two answers is preferred, against itself as it was (Rafailov et al. 2023)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from potstill.errors import DataError
from potstill.evaluation.statistics import Observation, share_estimate
from potstill.records import Feedback, Pair
from potstill.sources import Data, Inputs, Mixture
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, sources

if TYPE_CHECKING:
    from potstill.stages.session import Session
    from potstill.training.batch import Item, Signal
    from potstill.training.data import Split
    from potstill.training.tasks import Task

HELD_OUT_FILE = "held_out.jsonl"

LossName = Literal[
    "sigmoid", "length_normalised", "ipo", "ipo_length_normalised", "hinge", "conservative", "robust", "apo_zero",
    "apo_down", "simpo", "cpo", "orpo", "kto",
]  # fmt: skip
REFERENCE_FREE = {"simpo", "cpo", "orpo"}
READS: dict[str, tuple[str, ...]] = {
    "conservative": ("beta", "flipped"),
    "robust": ("beta", "flipped"),
    "simpo": ("beta", "gamma"),
    "cpo": ("beta", "nll_weight"),
    "orpo": ("odds_weight",),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
}
"""The options that each loss reads; those that are not named read beta alone. A test compares it with the losses."""
OPTIONS = ("beta", "flipped", "gamma", "nll_weight", "odds_weight", "desirable_weight", "undesirable_weight")


class DpoConfig(TrainingConfig):
    """Direct preference optimisation and its kin. The reference is the model that training starts from."""

    kind: Literal["dpo"]
    model: LocalModelName
    """The model to start from, as a rule the one that SFT made."""
    template: str | None = Field(default=None, min_length=1)
    """A chat template, as Jinja, in place of the model's own, for losses that start from a base model, such as orpo;
    what is made keeps it."""
    data: Annotated[Mixture, Reference(("pairs", "feedback"))]
    """The pairs, or several sources of them; for kto single labelled answers too."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """The peak learning rate."""
    global_batch: int = Field(default=32, ge=1)
    """Pairs an optimizer step; for kto answers."""
    max_length: int = Field(default=2048, ge=8)
    """A pair whose longer conversation has more tokens is left out and counted; cutting would change what it says."""
    loss: LossName = "sigmoid"
    """sigmoid is DPO itself; the others are its kin, each a function in `potstill.objectives.preference`."""
    beta: float = Field(default=0.1, gt=0, le=1000)
    """How strongly the model is held to its reference; smaller lets it move further. Not for orpo."""
    flipped: float = Field(default=0.1, ge=0, lt=0.5)
    """The share of pairs taken to be labelled the wrong way round, for conservative and robust."""
    gamma: float = Field(default=1.0, ge=0)
    """The reward by which simpo wants the chosen answer to win; the paper's gamma / beta times beta."""
    nll_weight: float = Field(default=1.0, ge=0)
    """How much cpo's likelihood of the chosen answer counts."""
    odds_weight: float = Field(default=0.1, ge=0)
    """How much orpo's odds ratio counts; the paper's lambda."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """How much good answers count, for kto."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """How much bad answers count, for kto."""
    sft_term: float = Field(default=0.0, ge=0)
    """Adds this much of the chosen answer's mean -log p per token (Pang et al. 2024, eq. 1). Not for kto."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        """An option that the chosen loss does not read is refused, not ignored."""
        reads = READS.get(self.loss, ("beta",)) + (() if self.loss == "kto" else ("sft_term",))
        unread = [
            option for option in (*OPTIONS, "sft_term") if option in self.model_fields_set and option not in reads
        ]
        if unread:
            raise ValueError(f"loss {self.loss} does not read {', '.join(unread)}; it reads {', '.join(reads)}")
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """What the loss is called with."""
        return {option: getattr(self, option) for option in READS.get(self.loss, ("beta",))}

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, the reference's pass included, at a guess of 700 a pair."""
        trained = self.forecast(rows, 700)
        return Expected(rows=trained.rows, tokens=trained.tokens + trained.rows * rows.get("data.tokens", 700))


def run(config: DpoConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, score every row once with the reference, train, keep, and judge the held-out pairs."""
    from potstill.stages.session import Session
    from potstill.training.watch import Guard

    session = Session(config, inputs, work)
    if config.template is not None:
        session.tokenizer.chat_template = config.template
    with session.encoding():
        split = _rows(config, session)
    referred = config.loss not in REFERENCE_FREE
    session.load(split, referred=referred)
    train, held_out = split.train, split.held_out
    if referred:
        # The held-out rows on their own, so that before the first step their margins are 0 to the last bit.
        train, held_out = session.refer(train), session.refer(held_out)
    watched, name = (held_out, "held_out") if held_out else (train, "train")
    guard = None if config.loss == "kto" else Guard(watched, name, work.warn)
    if config.loss == "kto" and len(labels := {split.desirable[item.row] for item in train}) == 1:
        work.warn(f"every answer is labelled {json.dumps(labels.pop())}; kto learns from both")
    happened = session.train(_task(config, session, split, train, held_out), guard)
    judged = _held_out_facts(session, held_out) if referred and config.loss != "kto" else {}
    return session.finish(split, {**happened, **judged})


def _rows(config: DpoConfig, session: "Session") -> "Split":
    from potstill.training.data import feedback_items, pair_items

    shared: dict[str, Any] = {"max_length": config.max_length, "held_out": config.held_out, "seed": session.work.seed}
    shared |= {"where": sources(session.inputs), "store": session.store}
    if config.loss == "kto":
        return feedback_items(session.tokenizer, _labelled(session.inputs), **shared)
    for data in session.inputs.data["data"]:
        if data.kind == "feedback":
            what = f"it holds single answers, and loss: {config.loss} needs pairs"
            raise DataError(data.name, what, "Set loss: kto, or give pairs")
    return pair_items(session.tokenizer, named_rows(session.inputs, Pair), **shared)


def _labelled(inputs: Inputs) -> "Iterator[tuple[str, Pair | Feedback]]":
    """The rows for KTO, whatever their kind."""
    for data in inputs.data["data"]:
        one = Inputs({"data": (data,)}, {}, {})
        if data.kind == "pairs" or (data.kind == "file" and _holds_pairs(data)):
            yield from named_rows(one, Pair)
        else:
            yield from named_rows(one, Feedback)


def _holds_pairs(file: Data) -> bool:
    """Whether a file's first row is a pair."""
    try:
        return next(iter(file.rows(Pair)), None) is not None
    except DataError:
        return False


def _task(
    config: DpoConfig, session: "Session", split: "Split", train: "Sequence[Item]", held_out: "Sequence[Item]"
) -> "Task":
    from potstill.training.tasks import feedback, preference

    steps = session.steps(train, config.global_batch)
    if config.loss == "kto":
        return feedback(steps, held_out, split.desirable, config.parameters)
    return preference(steps, held_out, config.loss, config.parameters, config.sft_term)


def _held_out_facts(session: "Session", items: "Sequence[Item]") -> dict[str, Any]:
    """How often the kept model prefers the chosen answer, beside two who never saw a pair.

    `accuracy` goes by the implicit reward, `likelihood` by the reference's own log-probability, `longer` by length.
    """
    policy = session.score(items)
    rows = []
    for item in items:
        chosen_tokens, rejected_tokens = (int(learn_L.sum()) for _, learn_L in item.answers)
        row: dict[str, Any] = {"id": item.row, "chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}
        row["policy"] = _sums(policy[item.row])
        row["reference"] = _sums(item.signals)
        rows.append(row)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (session.work.path / HELD_OUT_FILE).write_text(text, encoding="utf-8")
    if not rows:
        return {}
    reward = [r["policy"][0] - r["reference"][0] - r["policy"][1] + r["reference"][1] for r in rows]
    likelihood = [r["reference"][0] - r["reference"][1] for r in rows]
    longer = [float(r["chosen_tokens"] - r["rejected_tokens"]) for r in rows]
    shares = {"accuracy": _share(reward), "likelihood": _share(likelihood), "longer": _share(longer)}
    return {"held_out_pairs": {"n": len(rows), **shares}}


def _sums(values: "Sequence[Signal]") -> list[float]:
    """Each answer's log-probability, in nats."""
    return [round(float(part.sum(dtype="float64")), 4) for part in values]


def _share(leads: "Sequence[float]") -> dict[str, float | None]:
    """The share of leads above 0, ties for a half, with its 95% interval."""
    wins = (1.0 if lead > 0 else 0.5 if lead == 0 else 0.0 for lead in leads)
    share = share_estimate(Observation(str(place), "", win) for place, win in enumerate(wins))
    interval = {"mean": share.mean, "low": share.low, "high": share.high}
    return {name: None if value is None else round(value, 4) for name, value in interval.items()}


STAGE = Stage(config=DpoConfig, produces="model", run=run, trains=True)
