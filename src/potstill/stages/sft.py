"""sft: teach a model the teacher's answers."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from potstill.records import Chat
from potstill.sources import Inputs
from potstill.stages.base import Expected, Facts, ModelName, Reference, Stage, Work
from potstill.stages.training import TrainingConfig, named_rows, settings


class SftConfig(TrainingConfig):
    """Supervised fine-tuning on conversations: the assistant's turns are learnt, the rest is read."""

    kind: Literal["sft"]
    model: ModelName
    """The model to start from. Without a chat template of its own it gets Zephyr's."""
    data: Annotated[str | tuple[str, ...], Reference(("chats",))]
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

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """Tokens read, at a guess of 500 a conversation."""
        return self.forecast(rows, 500)


def run(config: SftConfig, inputs: Inputs, work: Work) -> Facts:
    """Tokenize, hold out, train, keep."""
    from potstill.training.data import chat_items
    from potstill.training.loop import likelihood, train
    from potstill.training.models import choose_device, choose_precision, load_model, load_tokenizer, save_model
    from potstill.training.schedule import global_batches
    from potstill.training.scoring import build_scorer

    device = choose_device(config.device)
    tokenizer = load_tokenizer(inputs.model("model"))
    split = chat_items(
        tokenizer,
        named_rows(inputs, Chat),
        max_length=config.max_length,
        on_long=config.on_long,
        learn=config.learn,
        held_out=config.held_out,
        seed=work.seed,
        where=", ".join(data.name for data in inputs.data["data"]),
    )
    model = load_model(inputs.model("model"), tokenizer, device)
    scorer = build_scorer(model, choose_precision(config.dtype, device))
    order = global_batches([1] * len(split.train), config.global_batch, config.epochs, work.seed)
    task = likelihood([[split.train[i] for i in batch] for batch in order], split.held_out)
    trained = train(scorer, task, settings(config, device.type), work.path, work.progress)
    save_model(scorer.release(), tokenizer, work.path)
    work.drop(split.dropped)
    return {**split.facts(), **scorer.facts(), **trained}


STAGE = Stage(config=SftConfig, produces="model", run=run, trains=True)
