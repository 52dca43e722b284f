"""What a recipe says about an adapter: a few trained weights beside a frozen base. Read without torch."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.sources import Spec


class Adapter(Spec):
    """Train low-rank additions to the model's matrices and leave the rest as it is. They are merged when it ends."""

    kind: Literal["lora", "dora", "qlora"] = "lora"
    """lora (Hu et al. 2021); dora: directions by lora, lengths on their own (Liu et al. 2024); qlora: lora on a base
    held in 4 bits (Dettmers et al. 2023), which needs bitsandbytes."""
    rank: int = Field(default=16, ge=1, le=65_536)
    """The rank of each addition."""
    alpha: float = Field(default=16, gt=0, le=1_000_000)
    """Each addition is scaled by alpha / rank."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """The share of an addition's inputs that is dropped while it is trained."""
    targets: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """The linear layers that get an addition, such as [q_proj, v_proj]; auto: all of the body. Experts of a mixture are
    no linear layers in transformers: they stay as they are."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps high ranks learning (Kalajdzievski 2023)."""
