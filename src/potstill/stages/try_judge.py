"""Stage `try_judge`: judges on trial. They judge answers that people judged too, in the way in which `evaluate` and
`judge` have them judge: each pair in both orders, or each answer by a grade of its own.

What comes out: agreement with most people and how far people agree among themselves, correlation with people's grades,
biases, what a judge says when it is asked again, and how much could be read at all, each with its interval. See
`evaluation.judge_trial` and `evaluation.judge_grades` for the definitions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from potstill.artifact import storage_errors, write_json
from potstill.errors import DataError, RecipeError
from potstill.evaluation.bar import measured
from potstill.evaluation.judge_trial import TRIAL_FILE, people_report
from potstill.records import Answers, Dropped
from potstill.sources import Inputs, Model
from potstill.stages.asking import Prompts
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.stages.judging import Tries
from potstill.stages.labelled import labelled_reader
from potstill.stages.trying import Case, Grading, How, InPairs, OnTrial, Way
from potstill.teachers.base import connect

VERDICTS_FILE = "verdicts.jsonl"

TOKENS_PER_CALL = 1200  # for forecasts
ASKED_PER_ROW = 2  # likewise: two orders, or two answers


class TryJudge(Tries):
    """Measure judges against people's preferences and grades."""

    PROMPTS = ("pairwise_system", "pairwise_user")

    kind: Literal["try_judge"]
    judge: Annotated[str | tuple[str, ...], Reference(("model",), pool=True)]
    """Who is tried: a model, a list of models, or a pool."""
    data: Annotated[str, Reference(("answers", "ratings", "pairs"))]
    """What people said: pairs, or answers that they rated, each under their name. Every two answers of a row that
    the same people rated are a comparison."""
    protocol: Literal["pairwise", "grade"] = "pairwise"
    """How the judge is asked: which of two answers is better, in both orders; or for a grade from 1 to 10 of one
    answer, as the suite mt_bench of `evaluate` asks, of which the higher of two is its preference."""
    repeats: int = Field(default=1, ge=1, le=20)
    """How often the same is asked, each time with another seed, to see whether the judge says the same again. All
    other figures are of the first time. At temperature 0 they tell how a server's answers vary by themselves; a local
    model is greedy then, and says the same."""
    aspect: str = ""
    """The aspect of the people's ratings; by default the mean of all that they gave."""
    scale: tuple[float, float] | None = None
    """The lowest and the highest grade that people could give: with it, the error of the judge's grades is measured
    (grade)."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Fail where less than this share of a judge's verdicts could be read."""

    @field_validator("judge")
    @classmethod
    def _somebody(cls, judge: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not judge:
            raise ValueError("nobody is on trial: name a model, a list of models, or a pool")
        return judge

    def check_models(self, models: Mapping[str, Sequence[Model]]) -> None:
        names = [model.name for model in models["judge"]]
        for name in names:
            if names.count(name) > 1:
                raise RecipeError("judge", f"'{name}' is on trial twice", "Name each judge once")

    @model_validator(mode="after")
    def _fits_its_protocol(self) -> Self:
        if self.protocol == "grade" and self.prompt_files:
            raise ValueError(
                "prompt_files has no use with protocol grade, which asks in the words of evaluate: omit it"
            )
        if self.protocol == "pairwise" and self.scale is not None:
            raise ValueError("scale has no use with protocol pairwise, which gives no grades: omit it")
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)}; expected the lowest grade before the highest")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        judges = rows.get("judge", 1 if isinstance(self.judge, str) else len(self.judge))
        calls = ASKED_PER_ROW * self.repeats * min(rows["data"], self.limit or rows["data"]) * judges
        return Expected(0, calls, calls * TOKENS_PER_CALL)

    def measures(self) -> frozenset[str]:
        """What a bar may be set on."""
        found = measured(self.protocol, self.repeats)
        return found if self.scale or self.protocol == "pairwise" else found - {"error"}


def run(config: TryJudge, inputs: Inputs, work: Work) -> Facts:
    """Ask every judge, and write the report."""
    data, judges = inputs.one("data"), inputs.models["judge"]
    how = How(config, Prompts(inputs), work.seed, data.name)
    way: Way = Grading(how, config.scale) if config.protocol == "grade" else InPairs(how)
    read, dropped = labelled_reader(data, config.limit), list[Dropped]()
    total = sum(1 for _ in _cases(way, read(), dropped))
    if not total:
        raise DataError(data.name, way.NOTHING, "Give pairs, or answers with people's ratings of that aspect")
    votes, comparisons = list[tuple[str, tuple[float, ...]]](), 0
    with ExitStack() as stack, storage_errors(work.path), (work.path / VERDICTS_FILE).open("w") as file:
        panel = [OnTrial(way, judge) for judge in judges]
        replies = [
            stack.enter_context(connect(each.judge, work.account)).complete(each.requests(_cases(way, read())))
            for each in panel
        ]
        for done, case in enumerate(_cases(way, read()), start=1):
            votes += [(case.cluster, question.votes) for question in case.questions]
            comparisons += len(case.questions)
            for each, said in zip(panel, replies, strict=True):
                file.writelines(_line(line) for line in each.hear(case, said))
            work.progress(done * len(panel), total * len(panel), "cases")
    for each in panel:
        each.check(config.min_coverage)
    reports = {each.judge.name: way.report(each.found) for each in panel}
    people = people_report(votes)
    tried = {"protocol": config.protocol, "repeats": config.repeats, "temperature": config.temperature}
    write_json(work.path / TRIAL_FILE, {**tried, "people": people, "judges": reports})
    work.drop(dropped)
    return {
        "comparisons": comparisons,
        "dropped": {way.REASON: len(dropped)} if dropped else {},
        "people": people["agreement_of_two"]["mean"],
        "judges": {name: way.short(report) for name, report in reports.items()},
    }


def _cases(way: Way, rows: Iterator[Answers], dropped: list[Dropped] | None = None) -> Iterator[Case]:
    """What there is to ask of the rows. Rows without anything are told in `dropped`."""
    for row in rows:
        found = way.cases(row)
        yield from found
        if not found and dropped is not None:
            usable = sum(candidate.usable for candidate in row.candidates)
            dropped.append(Dropped(id=row.id, reason=way.REASON, detail=f"{usable} usable answers"))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


STAGE = Stage(config=TryJudge, produces="trial", run=run, version=3)
