"""What an evaluation asks of its judges before it asks them anything: a bar, and a trial that shows who clears it."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from potstill.artifact import read_json
from potstill.errors import RecipeError, TeacherError
from potstill.evaluation import mt_bench
from potstill.evaluation.bar import Standing, standings
from potstill.evaluation.judge_trial import TRIAL_FILE
from potstill.sources import Data, Spec
from potstill.stages.asking import Asking
from potstill.stages.base import Source

HOW_TO_MEASURE = {
    "self_consistency": "give the trial repeats: 2 or more",
    "consistency": "name a trial of protocol: pairwise",
    "position_bias": "name a trial of protocol: pairwise",
    "spearman": "name a trial of protocol: grade, on answers that people graded",
    "kendall": "name a trial of protocol: grade, on answers that people graded",
    "error": "name a trial of protocol: grade with the scale of people's grades",
}


class Bar(Spec):
    """What a trial has to show of a judge: its whole 95% interval has to be on the right side of each."""

    agreement: float | None = Field(default=None, ge=0, le=1)
    """At least this share of verdicts are those of most people: first, second or a tie."""
    agreement_where_decided: float | None = Field(default=None, ge=0, le=1)
    """The same where neither the judge nor people see a tie."""
    kappa: float | None = Field(default=None, ge=-1, le=1)
    """At least this agreement beyond chance."""
    coverage: float | None = Field(default=None, ge=0, le=1)
    """At least this share of verdicts can be read."""
    consistency: float | None = Field(default=None, ge=0, le=1)
    """At least this share of comparisons keep their verdict when the order is reversed (pairwise)."""
    self_consistency: float | None = Field(default=None, ge=0, le=1)
    """At least this share of verdicts stay the same when the judge is asked again (repeats)."""
    spearman: float | None = Field(default=None, ge=-1, le=1)
    """At least this correlation of ranks with people's grades (grade)."""
    kendall: float | None = Field(default=None, ge=-1, le=1)
    """At least this tau-b with people's grades (grade)."""
    position_bias: float | None = Field(default=None, ge=0, le=0.5)
    """The share of preferences for what is shown first is at most this far from a half (pairwise)."""
    length_bias: float | None = Field(default=None, ge=0, le=1)
    """The judge gives longer texts at most this much more of the win than people do, or less."""
    list_bias: float | None = Field(default=None, ge=0, le=1)
    """The same of texts with more lines of lists and headings."""
    error: float | None = Field(default=None, ge=0, lt=mt_bench.HIGHEST - mt_bench.LOWEST)
    """Grades are at most so many points from people's, in the mean (grade with scale). Points are the judge's, of
    which there are nine from 1 to 10."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.measures:
            raise ValueError(f"the bar is empty; set one of: {', '.join(type(self).model_fields)}")
        return self

    @property
    def measures(self) -> dict[str, float]:
        """Those that are set, by name."""
        return {name: value for name, value in self.model_dump().items() if value is not None}

    @property
    def text(self) -> str:
        """In a line."""
        return ", ".join(f"{name} {value:g}" for name, value in self.measures.items())


class Tries(Asking):
    """The config of a stage that tries judges."""

    def measures(self) -> frozenset[str]:
        """What a bar may be set on."""
        raise NotImplementedError


def check_trials(bar: Bar, trials: Sequence[Source], judges: Sequence[str]) -> None:
    """RecipeError where no trial tries one of the judges, or none measures what the bar is set on."""
    for judge in judges:
        tried = [trial for trial in trials if judge in trial.reads.get("judge", ())]
        if trials and not tried:
            where = ", ".join(trial.name for trial in trials)
            what = f"the judge '{judge}' has to clear a bar, but is not tried in {where}"
            raise RecipeError("trial", what, f"Name it under the trial's judge, or write trust: [{judge}]")
        configs = [trial.config for trial in tried]
        able = [config.measures() for config in configs if isinstance(config, Tries)]
        for measure in bar.measures if len(able) == len(tried) else ():
            if not any(measure in found for found in able):
                what = f"the bar is set on {measure}, which no trial of '{judge}' here measures"
                how = HOW_TO_MEASURE.get(measure, "")
                raise RecipeError("trial", what, f"To have it, {how}, or take {measure} from the bar")


def hold_to_bar(bar: Bar, trials: Sequence[Data], judges: Sequence[str], trust: Sequence[str]) -> dict[str, Any]:
    """How the judges stand to the bar, for facts and scores. TeacherError where one that is not trusted does not
    clear it. `trials`: sealed ones."""
    found = {data.name: read_json(data.path / TRIAL_FILE) for data in trials}
    held = {}
    for judge in judges:
        having = {name: trial for name, trial in found.items() if judge in trial["judges"]}
        standing = standings(judge, bar.measures, having) if having else []
        short = [one.text for one in standing if not one.holds] if having else ["it was not tried"]
        if short and judge not in trust:
            raise _refusal(judge, standing, short)
        told = [one.to_json() for one in standing]
        held[judge] = {"standings": told, "short": short, "trusted": bool(short)}
    return {"bar": {"measures": bar.measures, "judges": held}}


def _refusal(judge: str, standing: Sequence[Standing], short: Sequence[str]) -> TeacherError:
    more = "more labelled comparisons for its trial, " if any(one.needed for one in standing) else ""
    remedy = f"Use another judge, {more}or write trust: [{judge}] to use this one all the same"
    return TeacherError(f"judge {judge}", "; ".join(short), remedy)
