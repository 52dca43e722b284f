"""Report: everything that the final page shows, gathered from scores and models and sealed. `reporting` draws it."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from potstill.artifact import ROWS_FILE, Artifact, find, read_json, write_json
from potstill.errors import RecipeError
from potstill.evaluation.failures import failed_judgments
from potstill.evaluation.footprint import amounts, kept
from potstill.evaluation.judge_trial import TRIAL_FILE
from potstill.evaluation.scores import SCORES_FILE, read_results
from potstill.lineage import folder_name
from potstill.members import pools
from potstill.records import ROWS
from potstill.reporting.curves import read_curves
from potstill.reporting.differences import only_against, without
from potstill.reporting.findings import noted
from potstill.reporting.suites import folded, told_apart
from potstill.sources import Data, Inputs, LocalModel, Model, Spec
from potstill.stages.base import Expected, Facts, PoolName, Reference, Source, Stage, StageConfig, Work
from potstill.stages.scored import results_of, scored_by
from potstill.validation import nearest

T = TypeVar("T")

REPORT_FILE = "report.json"
AUDIT_FILE = "audit.json"
ANSWERS_FILE = "answers.jsonl"
CURVES_FILE = "curves.jsonl"

SHOWN_CHARACTERS = 6000
"""A longer answer is cut on the page; it stands whole in the scores."""


class Claim(Spec):
    """An ordering to look for: one model does better than another on a suite."""

    better: str
    """One of the report's models, a family perhaps."""
    worse: str
    """Another of them."""
    suite: str
    """The suite that decides."""


MOST = 1e6
Score = Annotated[float, Field(ge=-MOST, le=MOST)]
StandardError = Annotated[float, Field(ge=0, le=MOST)]


class Published(Spec):
    """What was published of such models, to stand beside what came out."""

    source: str
    """Where, as a reader would look for it."""
    scores: dict[str, dict[str, Score | tuple[Score, StandardError]]]
    """By model and suite: a score, or [score, standard error]. On the suite's scale: a share of 0.85, not 85%."""

    def said(self) -> Iterator[tuple[str, str, str, float]]:
        """Every score, with where it stands, its model and its suite."""
        for model, scores in self.scores.items():
            for suite, found in scores.items():
                score = found[0] if isinstance(found, tuple) else found
                yield f"published.scores.{model}.{suite}", model, suite, score


class Report(StageConfig):
    """One page on what came out."""

    kind: Literal["report"]
    scores: tuple[Annotated[str, Reference(("scores",), collects=True)], ...] = Field(min_length=1)
    """The evaluations to show."""
    models: tuple[PoolName, ...] = ()
    """The models whose training curves to show, and which the page says how to use: the last one first of all."""
    audits: tuple[Annotated[str, Reference(("audit",), collects=True)], ...] = ()
    """The audits of models to show."""
    trials: tuple[Annotated[str, Reference(("trial",), collects=True)], ...] = ()
    """The trials of judges to show."""
    against: str | None = None
    """One of `models`, a family perhaps: the others are set against it, with what each took and what it learnt from."""
    claims: tuple[Claim, ...] = ()
    """Orderings to look for. The page opens with whether each holds; its numbers are corrected for their number."""
    published: Published | None = None
    """Published scores, to stand beside those that came out."""
    teacher: str | None = None
    """One of the evaluated models, a family perhaps: the page says what share of its score each other one keeps."""
    machine_usd_per_hour: float | None = Field(default=None, ge=0)
    """What an hour of the machine costs that local models answer on; by it the page says what their answers cost."""
    title: str = ""
    """What stands at the head of the page; by default the name of the run's folder."""
    answers: int = Field(default=10, ge=0, le=100)
    """How many questions to show with every model's answer, chosen by seed across the categories."""

    @model_validator(mode="after")
    def _against_one_of_them(self) -> Self:
        if self.against is not None and self.against not in self.models:
            raise ValueError(f"against names '{self.against}', which is none of models; expected one of them")
        named = [(f"claims.{place}", name) for place, one in enumerate(self.claims) for name in (one.better, one.worse)]
        named += [("published.scores", name) for name in (self.published.scores if self.published else ())]
        for field, name in named:
            if name not in self.models:
                raise ValueError(f"{field} names '{name}', which is none of models; expected one of them")
        for place, one in enumerate(self.claims):
            if one.better == one.worse:
                raise ValueError(f"claims.{place} sets '{one.better}' against itself; expected two models")
        return self

    def check_sources(self, sources: Mapping[str, Sequence[Source]]) -> None:
        evaluations = sources["scores"]
        suites = told_apart([(origin, suite, None) for origin, suite in results_of(evaluations)])
        self.check_names(list(suites), list(pools(scored_by(evaluations))))

    def check_names(self, suites: Sequence[str], models: Sequence[str]) -> None:
        """RecipeError, its place a field, where that is about a suite or a model that the scores have not."""
        claims = [(f"claims.{place}", one) for place, one in enumerate(self.claims)]
        said = list(self.published.said()) if self.published else []
        named = [(field, one.suite) for field, one in claims] + [(field, suite) for field, _, suite, _ in said]
        for field, suite in named:
            if suite not in suites:
                what = f"'{suite}' is a suite that none of the scores has{nearest(suite, suites)}"
                raise RecipeError(field, what, f"Name one of: {', '.join(suites)}")
        named = [("teacher", self.teacher)] if self.teacher is not None else []
        named += [(field, name) for field, one in claims for name in (one.better, one.worse)]
        named += [(field, model) for field, model, _, _ in said]
        for field, name in named:
            if name not in models:
                what = f"'{name}' is a model that none of the scores has{nearest(name, models)}"
                raise RecipeError(field, what, f"Name one of: {', '.join(models)}, or evaluate it")

    def expect(self, rows: Mapping[str, int]) -> Expected:
        """It makes one file."""
        return Expected()


def run(config: Report, inputs: Inputs, work: Work) -> Facts:
    """Gather and choose; writes report.json."""
    scores = inputs.data["scores"]
    models = inputs.models.get("models", ())
    stages = {model.name: made for model in models if (made := _made_by_a_stage(model)) is not None}
    scored = dict.fromkeys(name for data in scores for name in read_json(data.path / SCORES_FILE)["models"])
    suites = _suites(scores, config.against, config.teacher)
    names = list(pools(scored))
    config.check_names(list(suites), names)
    _check_scales(config, suites)
    report: dict[str, Any] = {
        "title": config.title,
        "models": names,
        "members": {
            name: names for name, names in pools({**scored, **dict.fromkeys(stages)}).items() if names != [name]
        },
        "against": config.against,
        "claims": [claim.model_dump() for claim in config.claims],
        "published": config.published.model_dump(mode="json") if config.published else None,
        "suites": suites,
        "footprint": _footprint(config, scores, names),
        "answers": _answers(scores, config.answers, work.seed),
        "failed": {
            data.name: found
            for data in scores
            if (found := failed_judgments(_read_lines(data.path / ANSWERS_FILE)))["failed"]
        },
        "curves": {name: read_curves(made.path / CURVES_FILE) for name, made in stages.items()},
        "stages": {name: _told(made) for name, made in stages.items()},
        "controlled": _controlled({pool: stages[names[0]] for pool, names in pools(stages).items()}),
    }
    held = {data.name: found for data in scores if (found := read_json(data.path / SCORES_FILE).get("bar"))}
    if held:
        report["bars"] = held
    trials = inputs.data.get("trials", ())
    if trials:
        report["trials"] = {data.name: read_json(data.path / TRIAL_FILE) for data in trials}
    audits = inputs.data.get("audits", ())
    if audits:
        report["audits"] = {data.name: read_json(data.path / AUDIT_FILE) for data in audits}
    write_json(work.path / REPORT_FILE, report)
    return {"models": report["models"], "suites": list(report["suites"]), "answers": len(report["answers"])}


def _check_scales(config: Report, suites: Mapping[str, Any]) -> None:
    """RecipeError where a published score lies off its suite's scale, a percentage for a share, say."""
    for field, _, suite, score in config.published.said() if config.published else ():
        low, high = suites[suite]["scale"]
        if score < low or (high is not None and score > high):
            scale = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
            what = f"{score:g} is off the scale of '{suite}'; expected {scale}"
            raise RecipeError(field, what, "Write it on that scale, a share of 0.85 for 85%")


def _made_by_a_stage(model: Model) -> Artifact | None:
    """The sealed folder of a model that this run made; None for one from elsewhere."""
    return find(Path(model.spec.path)) if isinstance(model.spec, LocalModel) else None


def _told(made: Artifact) -> dict[str, Any]:
    """What a model was made with, and how much lay on disk for it to learn from."""
    config, facts = made.manifest["config"], made.facts
    own = config.get("on_policy") or {}
    fields = ("teacher",) if own.get("share") == 1 else ("data", "teacher")  # of rows that it answers itself: no answer
    sources = [source for field in fields for source in made.manifest["inputs"].get(field, ())]
    found = [find(made.path.parent / folder_name(source["name"], source["key"])) for source in sources]
    told = {"kind": made.manifest["kind"], "facts": facts, "signal_bytes": sum(_bytes(one) for one in found if one)}
    if "own_answers" in facts:
        told["learnt_tokens"] = round(facts["own_answers"]["tokens"] + (1 - own["share"]) * _learnt(made))
    elif "learnt_tokens" in facts:
        told["learnt_tokens"] = round(_learnt(made))
    return told


def _learnt(made: Artifact) -> float:
    """Tokens of answers that were learnt over all epochs."""
    return float(made.facts["learnt_tokens"] * made.manifest["config"].get("epochs", 1))


def _bytes(artifact: Artifact) -> int:
    """Of the rows or the signals that lie there."""
    files = {name: int(stamp["bytes"]) for name, stamp in artifact.manifest["files"].items()}
    if artifact.produces == "signals":
        return sum(size for name, size in files.items() if name.startswith(f"{artifact.produces}/"))
    return files.get(ROWS_FILE, 0) if artifact.produces in ROWS else 0


def _suites(scores: Sequence[Data], against: str | None, teacher: str | None) -> dict[str, Any]:
    """The suites of all evaluations; a name that two of them use is told apart by the evaluation's.

    Where all are set against one, only those comparisons count: the others were not asked for. Nor are those with the
    teacher: of it the report says what share others keep.
    """
    found = [
        (data.name, name, noted(folded(suite), name, _notes(data)))
        for data in scores
        for name, suite in _read_suites(data).items()
    ]
    if against is not None:
        found = [(origin, name, only_against(suite, against)) for origin, name, suite in found]
    elif teacher is not None:
        found = [(origin, name, without(suite, teacher)) for origin, name, suite in found]
    return told_apart(found)


def _footprint(config: Report, scores: Sequence[Data], models: Sequence[str]) -> dict[str, Any]:
    """What the models are, how much they were asked, and what they keep of the teacher's scores."""
    sealed = [made for data in scores if (made := find(data.path)) is not None]
    shares = [
        (data.name, name, kept(result, models, config.teacher))
        for data in (scores if config.teacher is not None else ())
        for name, result in read_results(data.path).items()
        if config.teacher is not None
    ]
    return {
        "teacher": config.teacher,
        "machine_usd_per_hour": config.machine_usd_per_hour,
        "models": amounts([made.facts.get("answering", {}) for made in sealed]),
        "kept": {name: ratios for name, ratios in told_apart(shares).items() if ratios},
    }


def _notes(data: Data) -> Mapping[str, Any]:
    """What the evaluation's facts say of its suites."""
    made = find(data.path)
    return made.facts.get("notes", {}) if made is not None else {}


def _read_suites(data: Data) -> dict[str, Any]:
    suites: dict[str, Any] = read_json(data.path / SCORES_FILE)["suites"]
    return suites


def _answers(scores: Sequence[Data], wanted: int, seed: int) -> list[dict[str, Any]]:
    """Some questions with the answers of every model, from the first suite of dialogues that there is."""
    for data in scores:
        for name, suite in _read_suites(data).items():
            if suite["protocol"] in ("mt_bench", "aspects", "exact", "mt_bench_pairs", "alpaca_eval"):
                lines = [line for line in _read_lines(data.path / ANSWERS_FILE) if line["suite"] == name]
                return _side_by_side(lines, wanted, seed)
    return []


def _side_by_side(lines: Sequence[Mapping[str, Any]], wanted: int, seed: int) -> list[dict[str, Any]]:
    shown = {names[0] for names in pools(line["model"] for line in lines).values()}  # one of each family
    questions: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["model"] in shown:
            questions.setdefault(line["id"], []).append(line)
    chosen = _across_categories({id_: group[0]["category"] for id_, group in questions.items()}, wanted, seed)
    return [
        {
            "id": id_,
            "category": questions[id_][0]["category"],
            "turns": [
                {"user": turn["user"], "answers": {line["model"]: _cut(line["turns"][i]) for line in questions[id_]}}
                for i, turn in enumerate(questions[id_][0]["turns"])
            ],
        }
        for id_ in chosen
    ]


def _across_categories(categories: Mapping[str, str], wanted: int, seed: int) -> list[str]:
    """Ids drawn by seed, one category after the other in turn, in the order of the questions."""
    draw = random.Random(seed)
    piles: dict[str, list[str]] = {}
    for id_, category in categories.items():
        piles.setdefault(category, []).append(id_)
    for pile in piles.values():
        draw.shuffle(pile)
    order = list(piles)
    draw.shuffle(order)
    taken: list[str] = []
    while len(taken) < min(wanted, len(categories)):
        for category in order:
            if piles[category] and len(taken) < wanted:
                taken.append(piles[category].pop())
    return [id_ for id_ in categories if id_ in set(taken)]


def _cut(turn: Mapping[str, Any]) -> dict[str, Any]:
    text = turn["assistant"]
    return {
        "text": text[:SHOWN_CHARACTERS],
        "cut": max(0, len(text) - SHOWN_CHARACTERS),
        "score": turn["score"],
        "reason": turn.get("reason", ""),
    }


def _controlled(stages: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Pairs of models that were made alike but for one field: the difference of their scores is that field's doing."""
    pairs = []
    names = list(stages)
    for i, earlier in enumerate(names):
        for later in names[i + 1 :]:
            a, b = stages[earlier].manifest, stages[later].manifest
            differing = [f for f in a["config"].keys() | b["config"].keys() if a["config"].get(f) != b["config"].get(f)]
            if a["kind"] == b["kind"] and len(differing) == 1:
                settings = [_plain(manifest["config"].get(differing[0])) for manifest in (a, b)]
                pairs.append({"earlier": earlier, "later": later, "field": differing[0], "settings": settings})
    return pairs


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


STAGE = Stage(config=Report, produces="report", run=run, version=2)
