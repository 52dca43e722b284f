"""How large a model is that is made from scratch. Read without torch."""

from typing import Self

from pydantic import Field, model_validator

from potstill.sources import Spec


class Size(Spec):
    """The size of a model made from scratch, in words that all families share."""

    layers: int = Field(default=4, ge=1, le=1_000)
    """Transformer layers."""
    width: int = Field(default=192, ge=8, le=100_000)
    """The hidden width; a multiple of twice `heads`."""
    heads: int = Field(default=6, ge=1)
    """Attention heads."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values, a divisor of `heads`; unset: as many."""
    expansion: float = Field(default=2.667, gt=0, le=100)
    """The feed-forward width as a multiple of `width`, rounded up to a multiple of 32."""
    context: int = Field(default=2048, ge=8, le=1 << 24)
    """The longest sequence that the model will be asked to read."""
    tied: bool = False
    """Whether the head is the embedding."""

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice heads ({self.heads})")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads {self.kv_heads} does not divide heads ({self.heads})")
        return self

    @property
    def feed_forward(self) -> int:
        """The feed-forward width."""
        return -(-round(self.width * self.expansion) // 32) * 32

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads
