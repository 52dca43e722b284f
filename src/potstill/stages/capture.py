"""capture: write down what a teacher says at every token of sealed conversations, to learn from it again and again."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.records import Chat
from potstill.sources import Inputs, Mixture
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, StageConfig, Work
from potstill.stages.training import named_rows, sources


class CaptureConfig(StageConfig):
    """A teacher's distributions and hidden states at every learnt token, on disk: a teacher is then read once for all
    epochs, students and losses.

    Kept are the largest entries of each distribution, with what all others have together; or a random sample of it,
    whose gradient is right on average and which costs fewer bytes; or both. A sample serves forward_kl alone.
    """

    kind: Literal["capture"]
    teacher: LocalModelName
    """Who is asked: a model whose weights are at hand."""
    student: LocalModelName | None = None
    """Whose tokens are asked for: rows are encoded with this model's chat template. Unset: with the teacher's own."""
    data: Annotated[Mixture, Reference(("chats",))]
    """The conversations, or several sources of them."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of the longest conversation that is kept as it is; as in the stage that learns from it."""
    on_long: Literal["drop", "cut"] = "drop"
    """A longer conversation is left out, or loses whole turns at its end until it fits. Both are counted."""
    learn: Literal["assistant", "all"] = "assistant"
    """Ask at what assistants say and the token that ends it, or at every token; as in the stage that learns from it."""
    top: int = Field(default=0, ge=0, le=1 << 16)
    """How many of the largest entries are kept."""
    draws: int = Field(default=0, ge=0, le=1 << 12)
    """How many draws are made, of those entries that are not kept by `top`; 50 are about 12 different ones."""
    temperature: float = Field(default=1.0, gt=0, le=100)
    """The teacher's logits are divided by it; as in the stage that learns from it."""
    layers: tuple[int, ...] = ()
    """Whose hidden states are kept: 1 is the first decoder layer's output, the number of layers the last's."""
    width: int | None = Field(default=None, ge=1)
    """To how many numbers each hidden state is projected at random; unset: none is lost."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes CUDA, then MPS, then the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What products are computed in; auto: bfloat16 where the hardware has it."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens read at once."""

    HOW = frozenset({"device", "micro_batch_tokens"})

    @model_validator(mode="after")
    def _something_is_kept(self) -> Self:
        if not (self.top or self.draws or self.layers):
            raise ValueError("nothing would be kept; set draws: 50, or top, or layers")
        if self.width is not None and not self.layers:
            raise ValueError("width is for hidden states, and no layers are kept; set layers")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        count = rows.get("data", 0)
        return Expected(rows=count, tokens=500 * count)
