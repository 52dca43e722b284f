"""A stage that reads models, pools and nested references."""

from typing import Annotated, Literal

from pydantic import Field

from potstill.records import Chat, Message
from potstill.sources import Spec
from potstill.stages.base import ModelName, PoolName, Reference, ServerName, Stage, StageConfig


class Suite(Spec):
    """A part of the config with a reference of its own."""

    questions: Annotated[str, Reference(("texts",))]
    """What to ask."""
    judge: ModelName | None = None
    """Who judges."""


class Asks(StageConfig):
    """Ask every model."""

    kind: Literal["asks"]
    models: tuple[PoolName, ...]
    """Whom."""
    suites: dict[str, Suite] = Field(default_factory=dict)
    """What."""
    server: ServerName | None = None
    """A world."""


def run(config, inputs, work):
    """One chat a model."""
    models = inputs.models["models"]
    asked = sorted(field for field, group in inputs.data.items() for _ in group)
    text = " ".join([*asked, *sorted(inputs.servers)])
    rows = [Chat(id=m.name, messages=(Message(role="assistant", content=f"{m.name} {text}"),)) for m in models]
    work.drop([])
    return {"rows": work.keep(rows)}


STAGE = Stage(config=Asks, produces="chats", run=run)
