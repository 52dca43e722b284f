"""Suite `preference`: how often the models' implicit reward agrees with given preferences."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from potstill.evaluation import preference
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Sheet
from potstill.records import Pair, Prompt
from potstill.stages.base import LocalModelName, Reference
from potstill.stages.suites.base import Bench, Crowd, Load, SuiteConfig

MEASURE = Measure("preference", (0.0, 1.0), share=True, unit="share of pairs")


class PreferenceSuite(SuiteConfig):
    """How often the models' implicit reward agrees with given preferences."""

    SOURCE: ClassVar[str] = "pairs"
    WEIGHTS: ClassVar[bool] = True

    protocol: Literal["preference"]
    pairs: Annotated[str, Reference(("pairs",))]
    """Pairs held out from training."""
    reference: LocalModelName
    """The model that preference training started from. It has no accuracy of its own: its likelihood is a baseline."""

    def load(self, rows: int, crowd: Crowd) -> Load:
        return Load(scored=rows * crowd.models)

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        bench.read(name, Pair)

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        pairs = bench.read(name, Pair)
        reference = bench.inputs.model(f"suites.{name}.reference")
        tick = bench.ticker(1 + len(bench.models), "models scored")
        known = preference.pair_likelihoods(reference, pairs, bench.score)
        tick()
        observations = preference.baselines(pairs, reference.name, known)
        for model in bench.models:
            if model.name != reference.name:  # against itself every margin is zero
                found = preference.pair_likelihoods(model, pairs, bench.score)
                observations[model.name] = preference.reward_accuracy(pairs, found, known)
            tick()
        bench.results[name] = SuiteResult(MEASURE, observations)
