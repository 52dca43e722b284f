"""Suite `exact`: how many answers a checker finds right, one answer a question, without sampling."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from potstill.errors import DataError
from potstill.evaluation import exact
from potstill.evaluation.scores import Measure, SuiteResult
from potstill.evaluation.sheets import Sheet
from potstill.evaluation.statistics import Observation
from potstill.own import OwnOrWord, is_own
from potstill.reading.formats import SNIFFED, examine
from potstill.records import Chat, Prompt
from potstill.skills.boxes import check_tools, open_toolbox
from potstill.skills.checkers import Checker, built_in, can_read, check_name, find_checker
from potstill.skills.dialogue import hold
from potstill.stages.base import Reference, ServerName
from potstill.stages.suites.base import Bench, Crowd, Load, SuiteConfig

MEASURE = Measure("exact", (0.0, 1.0), share=True, unit="share of questions")


class ExactSuite(SuiteConfig):
    """How many answers are right, by a checker. One answer a question, without sampling."""

    protocol: Literal["exact"]
    questions: Annotated[str, Reference(("prompts", "chats"))]
    """Held-out prompts with references; or chats, whose last answer is the reference."""
    checker: OwnOrWord = "exact"
    """number, exact, choice, json, rating, python_tests (runs code that models write), or mine.py:check, as in the
    stage `reason`."""
    tools: tuple[OwnOrWord, ...] = ()
    """What the models may call, as in the stage `use_tools`. The calls are executed."""
    server: ServerName | None = None
    """The miniature server whose archive the tool `lookup` reads."""
    max_calls: int = Field(default=4, ge=1, le=100)
    """The most calls for one question."""
    tool_seconds: float = Field(default=10.0, gt=0)
    """How long one call of your own tools may take."""

    @field_validator("checker")
    @classmethod
    def _known(cls, checker: str) -> str:
        return check_name(checker)

    @model_validator(mode="after")
    def _tools(self) -> "ExactSuite":
        check_tools(self.tools, self.server is not None)
        return self

    def load(self, rows: int, crowd: Crowd) -> Load:
        return Load(lines=rows * crowd.models, answers=rows * crowd.models * (2 if self.tools else 1))

    def glance(self, name: str, path: Path) -> None:
        if not is_own(self.checker):
            first = (row.record for row in islice(examine(path, Prompt), SNIFFED) if row.record is not None)
            self._check_references(name, first, built_in(self.checker), str(path))

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        place = bench.inputs.one(f"suites.{name}.questions").name
        self._check_references(name, self._questions(bench, name), self._checker(bench, name), place)

    def _check_references(self, name: str, questions: Iterable[Prompt], checker: Checker, place: str) -> None:
        for question in questions:
            if not can_read(checker, question.references[0] if question.references else ""):
                what = f"the checker '{self.checker}' of suite '{name}' can read no reference of '{question.id}'"
                raise DataError(place, what, "Give every question a reference, or choose another checker")

    def measure(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> None:
        questions, checker = self._questions(bench, name), self._checker(bench, name)
        tick = bench.ticker(len(questions) * len(bench.models), "answers")
        own = bench.inputs.functions.get(f"suites.{name}.tools", ())
        server = bench.inputs.servers.get(f"suites.{name}.server")
        observations: dict[str, list[Observation]] = {}
        with open_toolbox(self.tools, own, server, self.tool_seconds) as toolbox:
            ask = exact.asking(questions, bench.config.max_tokens, bench.work.seed)
            for model in bench.models:
                with bench.connect(model) as teacher:
                    held = hold(teacher, [q.messages for q in questions], toolbox, ask, self.max_calls, tick)
                found = [exact.checked(name, model.name, q, d, checker) for q, d in zip(questions, held, strict=True)]
                bench.sheets += found
                observations[model.name] = [seen for sheet in found for seen in sheet.observations()]
        bench.results[name] = SuiteResult(MEASURE, observations)

    def _checker(self, bench: Bench, name: str) -> Checker:
        return find_checker(self.checker, bench.inputs.functions.get(f"suites.{name}.checker", ()))

    def _questions(self, bench: Bench, name: str) -> list[Prompt]:
        if bench.inputs.one(f"suites.{name}.questions").kind == "chats":
            return [exact.as_question(chat) for chat in bench.read(name, Chat)]
        return bench.read(name, Prompt)
