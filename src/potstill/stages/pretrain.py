"""pretrain: a base model from scratch, with a tokenizer of its own, from plain text."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.records import Text
from potstill.sources import Inputs, Mixture
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, sources
from potstill.training.size import Size


class PretrainConfig(TrainingConfig, Size):
    """Train a byte-level BPE tokenizer and a Mistral-architecture model on plain text."""

    kind: Literal["pretrain"]
    data: Annotated[Mixture, Reference(("texts",))]
    """The texts, or several sources of them."""
    vocabulary: int = Field(default=2048, ge=262, le=1_000_000)
    """Tokens of the tokenizer, its 6 control tokens and 256 bytes among them."""
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
        if (self.block_length or 0) > self.context:
            raise ValueError(f"block_length {self.block_length} is longer than the context ({self.context})")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 200 a text."""
        return self.forecast(rows, 200)


def run(config: PretrainConfig, inputs: Inputs, work: Work) -> Facts:
    """Make the tokenizer, then the model, then train it on every token."""
    from potstill.stages.session import Session
    from potstill.tokens.tokenization import train_tokenizer
    from potstill.training.data import text_items
    from potstill.training.making import make_model
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
    model = make_model("mistral", config, tokenizer, work.seed, session.device)
    size = {"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)}
    session.take(model, split.train)
    steps = session.steps(split.train, config.batch_tokens, by_tokens=True)
    return {**session.finish(split, session.train(likelihood(steps, split.held_out))), **size}


STAGE = Stage(config=PretrainConfig, produces="model", run=run, trains=True)
