"""What suites that compare with a baseline have in common: who that is, what it answered, and who is set against it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from potstill.errors import DataError
from potstill.evaluation.comparing import Contest, contests, oddities, undecided
from potstill.evaluation.continued import Taken
from potstill.evaluation.recorded import read_recorded, recorded_sheets
from potstill.evaluation.sheets import Sheet
from potstill.records import Prompt
from potstill.sources import Model
from potstill.stages.base import Reference
from potstill.stages.suites.base import Bench, Crowd, JudgedSuite


class ComparedSuite(JudgedSuite):
    """A suite in which every model is compared with one baseline."""

    baseline: Annotated[str, Reference(("model", "file"))] | None = None
    """What every model is compared with: a model, or a file of recorded answers of one (FastChat's, AlpacaEval's
    model_outputs.json, or potstill's answers.jsonl). It has no row of its own. Default: the first of the models."""

    def others(self, bench: Bench, name: str) -> tuple[Model, ...]:
        known = {model.name for model in bench.models}
        return tuple(
            model for model in bench.inputs.models.get(f"suites.{name}.baseline", ()) if model.name not in known
        )

    def fault(self, models: Sequence[str]) -> str:
        if self.baseline is None and not models:
            return "has nothing to compare with: name a baseline"
        return super().fault(models)

    def crowd(self, models: int, named: Sequence[str], baselines: int) -> Crowd:
        """`baselines` is 0 where the baseline is a file, which nobody is asked for."""
        among = self.baseline is None or self.baseline in named
        return Crowd(models, 0 if among else baselines, models + len(self.recorded) - among)

    def check_rows(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> None:
        model, rows = self._model(bench, name), bench.rows(name)
        if model is not None:
            its = model.name
        else:
            recorded, file = self._recorded_baseline(bench, name, prompts), bench.inputs.one(f"suites.{name}.baseline")
            its = recorded[0].model
            if its in rows:
                what = f"it holds the answers of '{its}', which is a row of suite '{name}' as well"
                raise DataError(file.name, what, "Give that row another name")
            bench.tell_missing(name, file.name, recorded)
        if not rows - {its}:
            what = f"there is nobody to compare with '{its}', the baseline of suite '{name}'"
            raise DataError(f"suites.{name}", what, "Name another model, or recorded answers")

    def contests(self, bench: Bench, name: str, sheets: Sequence[Sheet]) -> list[Contest]:
        """Each dialogue of the others with the baseline's over the same question."""
        model = self._model(bench, name)
        if model is not None:
            its = [sheet for sheet in sheets if sheet.model == model.name]
        else:
            its = self._recorded_baseline(bench, name, list({s.prompt.id: s.prompt for s in sheets}.values()))
        return list(contests([sheet for sheet in sheets if sheet.model != its[0].model], its))

    def _model(self, bench: Bench, name: str) -> Model | None:
        """The baseline where it is a model, else None."""
        if self.baseline is None:
            return bench.models[0]
        return next(iter(bench.inputs.models.get(f"suites.{name}.baseline", ())), None)

    def _recorded_baseline(self, bench: Bench, name: str, prompts: Sequence[Prompt]) -> list[Sheet]:
        file = bench.inputs.one(f"suites.{name}.baseline")
        recorded = read_recorded(file.path, file.name)
        return recorded_sheets(recorded.model, recorded, prompts, file.name)

    def with_taken(
        self, bench: Bench, name: str, sheets: Sequence[Sheet], compared: Sequence[Contest], taken: Taken, each: int
    ) -> list[Sheet]:
        """The sheets with the verdicts that are there. `each`: how often a judge is asked to compare two answers."""
        known = [replace(contest, model=sheet) for contest, sheet in zip(compared, taken.sheets, strict=True)]
        found = {(s.model, s.prompt.id): s for s in bench.take(name, taken, each * len(undecided(known)))}
        return [found.get((sheet.model, sheet.prompt.id), sheet) for sheet in sheets]

    def keep_baseline(self, bench: Bench, name: str, compared: Sequence[Contest]) -> None:
        """The baseline's answers among those of the evaluation; they have no score."""
        its = {contest.baseline.prompt.id: contest.baseline for contest in compared}
        silent = [replace(s, turns=tuple(replace(turn, applies=False) for turn in s.turns)) for s in its.values()]
        bench.sheets += [replace(sheet, suite=name) for sheet in silent]

    def tell(self, bench: Bench, name: str, compared: Sequence[Contest]) -> None:
        """What the facts say of comparisons."""
        odd = oddities([contest.model for contest in compared])
        told = bench.notes.setdefault(name, {})
        told |= {"baseline": compared[0].baseline.model, **odd}
