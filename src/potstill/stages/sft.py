"""sft: teach a model the teacher's answers."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from potstill.sources import Inputs, Mixture
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, chats_as_items


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on conversations: the assistant's turns are learnt, the rest is read."""

    kind: Literal["sft"]
    model: LocalModelName
    """The model to start from. Without a chat template of its own it gets Zephyr's."""
    template: str | None = Field(default=None, min_length=1)
    """A chat template, as Jinja, in place of the model's own; what is made keeps it. Tools need one that knows them."""
    data: Annotated[Mixture, Reference(("chats",))]
    """The conversations, or several sources of them."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """The peak learning rate."""
    global_batch: int = Field(default=128, ge=1)
    """Conversations an optimizer step."""
    max_length: int = Field(default=2048, ge=8)
    """Tokens of the longest conversation that is learnt as it is."""
    on_long: Literal["drop", "cut"] = "drop"
    """A longer conversation is left out, or loses whole turns at its end until it fits. Both are counted."""
    learn: Literal["assistant", "all"] = "assistant"
    """Learn what assistants say and the token that ends it, or every token."""
    new_tokens: tuple[str, ...] = ()
    """Words that become single tokens of their own, such as "<think>"; their embeddings start as the mean of all."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings in training; Jain et al. 2023 (NEFTune) take 5 to 15, and 0 is none."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        return self.forecast(rows, 500)


def run(config: SftConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, hold out, train, keep."""
    from potstill.stages.session import Session
    from potstill.tokens.tokenization import add_tokens
    from potstill.training.tasks import likelihood

    session = Session(config, inputs, work)
    if config.template is not None:
        session.tokenizer.chat_template = config.template
    known = set(session.tokenizer.get_vocab())
    add_tokens(session.tokenizer, config.new_tokens)
    vocabulary = session.tokenizer.get_vocab()
    new_tokens = [vocabulary[token] for token in config.new_tokens if token not in known]
    with session.encoding():
        split = chats_as_items(
            config,
            inputs,
            session.tokenizer,
            work.seed,
            session.store,
            held_out=config.held_out,
            new_tokens=config.new_tokens,
        )
    session.load(split, new_tokens)
    happened = session.train(likelihood(session.steps(split.train, config.global_batch), split.held_out))
    return session.finish(split, happened)


STAGE = Stage(config=SftConfig, produces="model", run=run, trains=True)
