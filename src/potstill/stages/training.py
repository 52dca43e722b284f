"""What the training stages have in common: the fields of their configs, and their rows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from potstill.errors import DataError
from potstill.records import Chat, Record
from potstill.sources import Inputs
from potstill.stages.base import Expected, StageConfig
from potstill.training.adapter_config import Adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from potstill.training.data import Split
    from potstill.training.tokens import Store

R = TypeVar("R", bound=Record)


class TrainingConfig(StageConfig):
    """Fields of every stage that trains."""

    epochs: float = Field(default=1.0, gt=0, le=1_000_000)
    """Passes over the rows; a part of one is that part of its steps."""
    learning_rate: float = Field(gt=0)
    """The peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: the body's matrices by orthogonalised momentum (Jordan et al. 2024), scaled to AdamW's step (Liu
    et al. 2025), and the rest by AdamW. It needs fewer steps for a model from scratch."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; cosine and linear end at 0."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """The share of all steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, of matrices only."""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second decay rate."""
    clip: float = Field(default=1.0, gt=0)
    """The gradient's norm is scaled down to this where it is larger."""
    held_out: int = Field(default=0, ge=0)
    """Rows kept apart to measure on. Rows with the same prompt stay together, so a few more may be taken."""
    evaluations: int = Field(default=4, ge=1, le=1_000_000)
    """How often the held-out rows are scored on the way, the end included; once more before the first step."""
    keep: Literal["best", "last"] = "last"
    """Which weights to keep: those with the lowest held-out loss, or those of the last step."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a lower held-out loss."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, then MPS, then the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in; weights and sums stay in float32. auto: bfloat16 where the hardware has it."""
    adapter: Adapter | None = None
    """Train low-rank additions only, and merge them at the end; unset: every weight."""
    store: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the sealed weights are stored in; auto: as the model's were that training started from."""
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens computed at once. It changes speed and memory, never the result; unset: as many as are worth while and
    memory allows, 2048 on a CPU and 16384 on a GPU at most."""
    activation_checkpointing: bool | None = None
    """Compute each layer's activations again in the backward instead of remembering them; a third slower, and much
    less memory. Unset: where the longest row would not fit otherwise."""
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers to send the curves to, each an installed package of that name. TensorBoard's files go into logs/."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """How often to write down where training stands, to go on there after a crash. It changes no result."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """The same, in steps; both may be given."""
    sharding: Literal["none", "fsdp2", "zero3"] = "none"
    """How the workers that `potstill run --launch` starts share the model: by PyTorch's FSDP2, or DeepSpeed's ZeRO-3.
    none: one worker trains, even then; and without --launch one trains whatever stands here."""

    HOW = frozenset(
        {
            "device",
            "micro_batch_tokens",
            "activation_checkpointing",
            "track",
            "checkpoint_minutes",
            "checkpoint_steps",
            "sharding",
        }
    )

    def extras(self) -> tuple[str, ...]:
        return ("qlora",) if self.adapter is not None and self.adapter.kind == "qlora" else ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.sharding != "none" and self.optimizer == "muon":
            raise ValueError(f"muon needs whole matrices; sharding: {self.sharding} cuts them; set optimizer: adamw")
        asked = [name for name in ("keep", "patience") if getattr(self, name) not in ("last", None)]
        if asked and not self.held_out:
            what = ", ".join(f"{name}: {getattr(self, name)}" for name in asked)
            raise ValueError(f"{what} goes by the held-out loss, and no rows are held out; set held_out")
        if self.adapter is not None and self.optimizer == "muon":
            raise ValueError("muon is for whole matrices, not for an adapter's factors; set optimizer: adamw")
        if self.sharding != "none" and self.adapter is not None and self.adapter.kind == "qlora":
            raise ValueError(f"4-bit weights cannot be cut, as sharding: {self.sharding} would; set adapter.kind: lora")
        return self

    def forecast(self, rows: Mapping[str, int], tokens_per_row: int) -> Expected:
        """What training on that many rows reads, of so many tokens each where nobody said how long they are."""
        count, tokens = rows.get("data", 0), rows.get("data.tokens", tokens_per_row)
        return Expected(rows=count, tokens=round(count * tokens * self.epochs))


class ReadsChats(Protocol):
    """The fields of a stage that reads conversations token by token."""

    @property
    def max_length(self) -> int: ...
    @property
    def on_long(self) -> Literal["drop", "cut"]: ...
    @property
    def learn(self) -> Literal["assistant", "all"]: ...


def chats_as_items(
    config: ReadsChats,
    inputs: Inputs,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
    store: "Store",
    *,
    held_out: int = 0,
    new_tokens: Sequence[str] = (),
) -> "Split":
    """The conversations of the `data` field, as the config wants them read; see `chat_items`."""
    from potstill.training.data import chat_items

    return chat_items(
        tokenizer,
        named_rows(inputs, Chat),
        max_length=config.max_length,
        on_long=config.on_long,
        learn=config.learn,
        held_out=held_out,
        seed=seed,
        where=sources(inputs),
        new_tokens=new_tokens,
        store=store,
    )


def sources(inputs: Inputs) -> str:
    """Where the rows come from, for messages."""
    return ", ".join(data.name for data in inputs.data["data"]) or "data"


def named_rows(inputs: Inputs, row_type: type[R]) -> Iterator[tuple[str, R]]:
    """All rows of the `data` field, each under a name that no other row has. Raises DataError."""
    seen: set[str] = set()
    for data in inputs.data["data"]:
        for row in data.rows(row_type):
            name = f"{data.name}/{row.id}"  # type: ignore[attr-defined]
            if name in seen:
                raise DataError(data.name, f"two rows have the id {name}", "Give every row an id of its own")
            seen.add(name)
            yield name, row
