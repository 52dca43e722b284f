"""pretrain: a base model from scratch, with a tokenizer of its own, from plain text."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.records import Text
from potstill.sources import Inputs, Mixture
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, sources


class PretrainConfig(TrainingConfig):
    """Train a byte-level BPE tokenizer and a Mistral-architecture model on plain text."""

    kind: Literal["pretrain"]
    data: Annotated[Mixture, Reference(("texts",))]
    """The texts, or several sources of them."""
    vocabulary: int = Field(default=2048, ge=262, le=1_000_000)
    """Tokens of the tokenizer, its 6 control tokens and 256 bytes among them."""
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
    block_length: int | None = Field(default=None, ge=8)
    """A longer text is cut into blocks of this many tokens; unset: the context. Texts never see each other."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens an optimizer step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """The peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decay, of matrices only."""
    beta2: float = Field(default=0.95, gt=0, lt=1)
    """AdamW's second decay rate."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice heads ({self.heads})")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"kv_heads {self.kv_heads} does not divide heads ({self.heads})")
        if (self.block_length or 0) > self.context:
            raise ValueError(f"block_length {self.block_length} is longer than the context ({self.context})")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 200 a text."""
        return self.forecast(rows, 200)


def run(config: PretrainConfig, inputs: Inputs, work: Work) -> Facts:
    """Make the tokenizer, then the model, then train it on every token."""
    from potstill.stages.session import Session
    from potstill.tokenization import train_tokenizer
    from potstill.training.data import text_items
    from potstill.training.models import Shape, make_mistral
    from potstill.training.tasks import likelihood

    tokenizer = train_tokenizer((text.text for _, text in named_rows(inputs, Text)), config.vocabulary)
    session = Session(config, inputs, work, tokenizer)
    with session.encoding():
        split = text_items(
            tokenizer,
            named_rows(inputs, Text),
            block_length=config.block_length or config.context,
            held_out=config.held_out,
            seed=work.seed,
            where=sources(inputs),
            store=session.store,
        )
    shape = Shape(
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads or config.heads,
        intermediate=-(-round(config.width * config.expansion) // 32) * 32,
        context=config.context,
        tied=config.tied,
    )
    model = make_mistral(shape, tokenizer, work.seed, session.device)
    size = {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}
    session.take(model, split.train)
    steps = session.steps(split.train, config.batch_tokens, by_tokens=True)
    return {**session.finish(split, session.train(likelihood(steps, split.held_out))), **size}


STAGE = Stage(config=PretrainConfig, produces="model", run=run, trains=True)
