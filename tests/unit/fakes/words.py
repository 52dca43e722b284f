"""Texts from nothing."""

from typing import Literal

from pydantic import Field

from potstill.records import Text
from potstill.stages.base import Expected, Stage, StageConfig


class Words(StageConfig):
    """Write a word several times."""

    kind: Literal["words"]
    text: str = "word"
    """What to write."""
    count: int = Field(default=3, ge=1)
    """How often."""

    def expect(self, rows):
        return Expected(rows=self.count, calls=2 * self.count, tokens=10)


def run(config, inputs, work):
    """Write the rows."""
    rows = work.keep(Text(id=str(i), text=f"{config.text} {i} {work.seed}") for i in range(config.count))
    work.drop([])
    return {"rows": rows}


STAGE = Stage(config=Words, produces="texts", run=run)
