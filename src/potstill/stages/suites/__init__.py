"""The suites of `evaluate`: a new protocol is one file here, and one name in the union."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from potstill.stages.suites.alpaca_eval import AlpacaEvalSuite
from potstill.stages.suites.answer_loss import AnswerLossSuite
from potstill.stages.suites.aspects import AspectsSuite
from potstill.stages.suites.exact import ExactSuite
from potstill.stages.suites.leaderboard import LeaderboardSuite
from potstill.stages.suites.mt_bench import MtBenchSuite
from potstill.stages.suites.mt_bench_pairs import MtBenchPairsSuite
from potstill.stages.suites.preference import PreferenceSuite
from potstill.validation import PlainName

Suite = Annotated[
    MtBenchSuite
    | MtBenchPairsSuite
    | AlpacaEvalSuite
    | AspectsSuite
    | AnswerLossSuite
    | PreferenceSuite
    | ExactSuite
    | LeaderboardSuite,
    Field(discriminator="protocol"),
]


def by_protocol(value: Any) -> Any:
    """A list of protocols as suites of those names."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            raise ValueError(
                "the same protocol stands there twice; give suites names of their own: {name: {protocol: ...}}"
            )
        return {name: {"protocol": name} for name in value}
    return value


Suites = Annotated[
    dict[PlainName, Suite], BeforeValidator(by_protocol, json_schema_input_type=dict[PlainName, Suite] | list[str])
]
