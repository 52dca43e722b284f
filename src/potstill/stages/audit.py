"""Audit: models looked over for what distillation is known to do wrong, each danger measured, with its verdict.

It reads what earlier stages left: answers and scores of evaluations, training curves, and the rows of the whole
lineage. It asks models only for what is not there: several answers to a prompt, and paired prompts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from potstill.artifact import write_json
from potstill.errors import RecipeError
from potstill.evaluation.audits.base import conclude, flagged
from potstill.sources import Data, Inputs
from potstill.stages.auditing import Auditor, PairedPrompts, Samples
from potstill.stages.base import Expected, Facts, ModelName, PoolName, Reference, Source, Stage, StageConfig, Work
from potstill.stages.scored import scored_by

AUDIT_FILE = "audit.json"
TOKENS_A_CALL = 300  # for `potstill plan`


class Audit(StageConfig):
    """What distillation may have done wrong to models."""

    kind: Literal["audit"]
    models: tuple[PoolName, ...] = Field(min_length=1)
    """The students, from the first stage to the last: each is set against the teacher, or the one before it."""
    teacher: ModelName | None = None
    """Whom they learnt from. Its answers have to stand in `scores` too, where answers are compared."""
    base: ModelName | None = None
    """What they were before, for what they forgot. It has to be scored too."""
    scores: tuple[Annotated[str, Reference(("scores",), collects=True)], ...] = Field(min_length=1)
    """The evaluations to read."""
    questions: Annotated[str | tuple[str, ...], Reference(("prompts", "chats", "pairs"), evaluations=True)] = (
        "evaluations"
    )
    """What is looked for in what the models learnt from. evaluations: whatever the recipe's evaluate stages ask or
    score."""
    files: tuple[Annotated[str, Reference(("texts", "chats", "pairs"))], ...] = ()
    """Files that were learnt from as they lie, without a stage that reads them in: named here they are searched too."""
    samples: Samples | None = None
    """Several answers to each prompt: prompts, how many, how they are drawn."""
    paired: PairedPrompts | None = None
    """Prompts that differ in one attribute."""

    def glance(self, field: str, accepts: Sequence[str], path: Path) -> None:
        super().glance(field, accepts, path)
        if field == "paired.prompts" and self.paired is not None:
            self.paired.variants(Data(path.name, "file", path))

    def check_sources(self, sources: Mapping[str, Sequence[Source]]) -> None:
        scored = scored_by(sources["scores"])
        silent = [student for student in sources["models"] if student.name not in scored]
        asks = self.samples is not None or self.paired is not None
        who = ", ".join(scored)
        for field in ("base", "teacher"):
            for model in sources.get(field, ()):
                if model.name not in scored and not (asks and field == "teacher"):
                    what = f"'{model.name}' is in none of the scores, so nothing can be set against it"
                    raise RecipeError(field, what, f"Name one of: {who}; or evaluate it")
        for student in silent:
            if student.config is None and not asks:
                what = f"'{student.name}' is in none of the scores and made by no stage: nothing of it can be measured"
                raise RecipeError("models", what, "Evaluate it, or leave it out")

    def expect(self, rows: Mapping[str, int]) -> Expected:
        asked = rows.get("models", len(self.models)) + (self.teacher is not None)
        calls = 0
        if self.samples is not None:
            given = rows.get("samples.prompts", 0)
            calls += min(given, self.samples.limit or given) * self.samples.each * asked
        if self.paired is not None:
            given = rows.get("paired.prompts", 0)
            values = sum(map(len, self.paired.attributes.values())) or 2
            graded = 2 if self.paired.judge is not None else 1
            calls += min(given, self.paired.limit or given) * values * asked * graded
        return Expected(0, calls, calls * TOKENS_A_CALL)


def run(config: Audit, inputs: Inputs, work: Work) -> Facts:
    """Measure every danger that can be measured; writes audit.json."""
    auditor = Auditor(inputs, work, config.samples, config.paired)
    audit = conclude(auditor.dangers(), auditor.models)
    write_json(work.path / AUDIT_FILE, {"teacher": auditor.teacher, "base": auditor.base, **audit})
    return {
        "models": audit["models"],
        "hypotheses": audit["hypotheses"],
        "flagged": flagged(audit),
        "not_measured": [name for name, danger in audit["dangers"].items()
                         if set(danger["verdicts"].values()) == {"not measured"}],
    }  # fmt: skip


STAGE = Stage(config=Audit, produces="audit", run=run)
