"""The suites of `evaluate`: a new protocol is one file here, and one name in the union."""

from typing import Annotated

from pydantic import Field

from potstill.stages.suites.answer_loss import AnswerLossSuite
from potstill.stages.suites.aspects import AspectsSuite
from potstill.stages.suites.exact import ExactSuite
from potstill.stages.suites.leaderboard import LeaderboardSuite
from potstill.stages.suites.mt_bench import MtBenchSuite
from potstill.stages.suites.preference import PreferenceSuite

Suite = Annotated[
    MtBenchSuite | AspectsSuite | AnswerLossSuite | PreferenceSuite | ExactSuite | LeaderboardSuite,
    Field(discriminator="protocol"),
]
