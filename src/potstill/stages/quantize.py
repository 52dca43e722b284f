"""Stage `quantize`: a model with its weights rounded to 8 or 4 bits, to be scored like any other before it is used.

bitsandbytes rounds, and transformers loads what it wrote, on a CPU and on a GPU. It is smaller on disk and in memory;
whether it is faster depends on the machine.
"""

from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from potstill.errors import DataError
from potstill.records import Chat
from potstill.sources import Inputs, Model
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, StageConfig, Work

SCHEMES = {8: ("int8",), 4: ("nf4", "fp4")}
"""By bits, the usual one first."""


class Quantize(StageConfig):
    """Round a model's weights."""

    kind: Literal["quantize"]
    model: LocalModelName
    """The model to round. Its embeddings and its head stay as they are."""
    bits: Literal[8, 4]
    """How many bits a weight has."""
    scheme: Literal["auto", "int8", "nf4", "fp4"] = "auto"
    """How: int8, a scale a row, and inputs rounded a token at a time (Dettmers et al. 2022); nf4, the quantiles of a
    normal distribution, 64 weights a scale (Dettmers et al. 2023); fp4, floating point. auto: int8, or nf4."""
    data: Annotated[str, Reference(("chats",))] | None = None
    """Conversations over whose answers both models are compared, token by token; unset: they are not."""
    rows: int = Field(default=32, ge=1)
    """How many of them."""

    def extras(self) -> tuple[str, ...]:
        return ("qlora",)

    @model_validator(mode="after")
    def _scheme_has_these_bits(self) -> Self:
        if self.scheme not in ("auto", *SCHEMES[self.bits]):
            raise ValueError(f"scheme {self.scheme} is none of {self.bits} bits; expected {_or(SCHEMES[self.bits])}")
        return self

    @property
    def chosen(self) -> str:
        """The scheme that is meant."""
        return SCHEMES[self.bits][0] if self.scheme == "auto" else self.scheme

    def expect(self, rows: object) -> Expected:
        """It makes a model."""
        return Expected()


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


def run(config: Quantize, inputs: Inputs, work: Work) -> Facts:
    """Round, and compare where there are rows to compare on."""
    from potstill.training.models import load_tokenizer, weights_files
    from potstill.training.quantized import Scheme, round_model

    source = inputs.model("model")
    tokenizer = load_tokenizer(source)
    scheme: Scheme = config.chosen  # type: ignore[assignment]
    rounded = round_model(source, tokenizer, scheme, work.path)
    facts: Facts = {"scheme": scheme, "bits": config.bits, "rounded_parameters": rounded}
    before = weights_files(source.local)
    after = sum(file.stat().st_size for file in work.path.glob("*.safetensors"))
    facts["weights_bytes"] = {"before": sum(file.stat().st_size for file in before) or None, "after": after}
    return {**facts, "drift": _drift(config, inputs, source, work.path)} if inputs.data.get("data") else facts


def _drift(config: Quantize, inputs: Inputs, source: Model, made: Path) -> Facts:
    """What rounding changed, over the first conversations that hold an answer and that the model can read."""
    from potstill.tokens.tokenization import encode_chats
    from potstill.training.batch import Item
    from potstill.training.models import load_tokenizer
    from potstill.training.quantized import drift

    data, tokenizer = inputs.one("data"), load_tokenizer(source)
    chats = list(islice(data.rows(Chat), config.rows))
    encoded = encode_chats(tokenizer, [chat.messages for chat in chats], tools=[chat.tools for chat in chats])
    items = [Item.chat(chat.id, row) for chat, row in zip(chats, encoded, strict=True) if row.learn_L[1:].any()]
    if not items:
        raise DataError(data.name, f"its first {config.rows} rows hold no answer", "Name conversations that hold one")
    found = drift(source, made, tokenizer, items)
    return {
        "rows": len(items),
        "tokens": found.tokens,
        "kl_nats_per_token": round(found.kl, 6),
        "logp_change_nats_per_token": round(found.logp_change, 6),
        "same_likeliest_token": round(found.same_choice, 4),
    }


STAGE = Stage(config=Quantize, produces="model", run=run)
