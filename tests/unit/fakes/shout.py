"""Texts from texts, slowly if need be."""

import time
from typing import Annotated, Literal

from potstill.records import Dropped, Text
from potstill.sources import Mixture
from potstill.stages.base import Expected, Reference, Stage, StageConfig


class Shout(StageConfig):
    """Say the same louder."""

    kind: Literal["shout"]
    data: Annotated[Mixture, Reference(("texts",))]
    """What to say."""
    extra: Annotated[str, Reference(("texts",))] | None = None
    """More of it."""
    mark: str = "!"
    """Put behind each."""
    seconds: float = 0.0
    """How long to take."""

    def expect(self, rows):
        return Expected(rows=rows["data"])


def run(config, inputs, work):
    """Write each row with its mark, some at a time."""
    rows = [row for data in inputs.data["data"] for row in data.rows(Text)]
    for done in range(20):
        (work.path / "partial.txt").write_text("half" * done)
        work.progress(done + 1, 20, "shouts", loudness=done / 2)
        time.sleep(config.seconds / 20)
    (work.path / "partial.txt").unlink()
    work.keep(Text(id=row.id, text=row.text.upper() + config.mark) for row in rows)
    work.drop([Dropped(id="x", reason="hoarse")])
    return {"rows": len(rows), "dropped": {"hoarse": 1}, "extra": len(inputs.data["extra"])}


STAGE = Stage(config=Shout, produces="texts", run=run)
