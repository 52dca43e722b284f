"""Suite `answer_loss`: how surprised the models are by given answers, in nats per token."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from potstill.errors import DataError
from potstill.evaluation import likelihood
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Sheet
from potstill.records import Chat, Prompt
from potstill.stages.base import Reference
from potstill.stages.suites.base import Bench, Crowd, Load, SuiteConfig

MEASURE = Measure("answer_loss", (0.0, None), higher_is_better=False, unit="nats per token")


class AnswerLossSuite(SuiteConfig):
    """How surprised the models are by given answers, in nats per token."""

    SOURCE: ClassVar[str] = "chats"
    WEIGHTS: ClassVar[bool] = True

    protocol: Literal["answer_loss"]
    chats: Annotated[str, Reference(("chats",))]
    """Conversations held out from training."""

    def load(self, rows: int, crowd: Crowd) -> Load:
        return Load(scored=rows * crowd.models)

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        if not likelihood.exchanges(bench.read(name, Chat)):
            data = bench.inputs.one(f"suites.{name}.chats")
            raise DataError(data.name, "no assistant turn that is to be learnt", "Name chats that hold one")

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        chats = bench.read(name, Chat)
        tick = bench.ticker(len(bench.models), "models scored")
        observations = {}
        for model in bench.models:
            observations[model.name] = likelihood.answer_loss(model, chats, bench.score)
            tick()
        bench.results[name] = SuiteResult(MEASURE, observations)
