"""Stage `try_judge`: judges on trial. They compare answers that people compared too, each pair in both orders.

What comes out: agreement with most people and how far people agree among themselves, the bias of place and of length,
ties, and how much could be read at all, each with its interval. See `evaluation.judge_trial` for the definitions.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from itertools import combinations, islice
from typing import Annotated, Any, Literal

from pydantic import Field

from potstill.artifact import storage_errors, write_json
from potstill.errors import DataError, TeacherError
from potstill.evaluation.judge_trial import Comparison, doublings, judge_report, majority, people_report
from potstill.formats import examine
from potstill.records import Answers, Candidate, Dropped, Message, Pair, Prompt
from potstill.sources import Data, Inputs, Model
from potstill.stages.asking import Asking, Prompts
from potstill.stages.base import Expected, Facts, Reference, Stage, Work
from potstill.teachers.base import Reply, Request, connect, remedy, request_seed
from potstill.teachers.pairwise import PREFERENCE, SCHEMA, read_comparison, render_pair_prompt
from potstill.teachers.ratings import exact_score
from potstill.teachers.sittings import Sitting, is_structured, shown_order

TRIAL_FILE = "trial.json"
VERDICTS_FILE = "verdicts.jsonl"

TOKENS_PER_CALL = 1200  # for forecasts
REPLY_SHOWN = 120


class TryJudge(Asking):
    """Measure judges against people's preferences."""

    PROMPTS = ("pairwise_system", "pairwise_user")

    kind: Literal["try_judge"]
    judge: Annotated[str | tuple[str, ...], Reference(("model",), pool=True)]
    """Who is tried: a model, a list of models, or a pool."""
    data: Annotated[str, Reference(("answers", "ratings", "pairs"))]
    """What people preferred: pairs, or answers that they rated, each under their name. Every two answers of a row that
    the same people rated are a comparison."""
    aspect: str = ""
    """The aspect of the people's ratings; by default the mean of all that they gave."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many rows."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the judge's sampling."""
    max_tokens: int = Field(default=1024, ge=1)
    """The longest judgment."""
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Fail where less than this share of a judge's verdicts could be read."""

    def expect(self, rows: Mapping[str, int]) -> Expected:
        judges = rows.get("judge", 1 if isinstance(self.judge, str) else len(self.judge))
        calls = 2 * min(rows["data"], self.limit or rows["data"]) * judges
        return Expected(0, calls, calls * TOKENS_PER_CALL)


@dataclass(frozen=True)
class Question:
    """Two answers of a row, and what people said of them: the first's share of the win, person by person."""

    row: Answers
    places: tuple[int, int]
    votes: tuple[float, ...]

    @property
    def cluster(self) -> str:
        """The prompt, in short."""
        text = json.dumps([[message.role, message.content] for message in self.row.prompt.messages])
        return sha256(text.encode()).hexdigest()[:16]

    def sittings(self, seed: int) -> Iterator[Sitting]:
        """Both orders, in an order drawn by seed."""
        for turn in range(2):
            yield Sitting(self.row, PREFERENCE, shown_order(self.places, turn, seed, self.row.id, PREFERENCE), turn)


def run(config: TryJudge, inputs: Inputs, work: Work) -> Facts:
    """Ask every judge, and write the report."""
    data, judges = inputs.one("data"), inputs.models["judge"]
    read, dropped = _reader(config, data), list[Dropped]()
    questions = sum(1 for _ in _questions(config, read(), dropped))
    if not questions:
        what = "no two answers of a row have ratings by the same people"
        raise DataError(data.name, what, "Give pairs, or answers with people's ratings of that aspect")
    found: dict[str, list[Comparison]] = {judge.name: [] for judge in judges}
    prompts, votes = Prompts(inputs), list[tuple[str, tuple[float, ...]]]()
    with ExitStack() as stack, storage_errors(work.path), (work.path / VERDICTS_FILE).open("w") as file:
        panel = [_Tried(config, judge, prompts, work.seed) for judge in judges]
        replies = [
            stack.enter_context(connect(each.judge, work.account)).complete(each.requests(_questions(config, read())))
            for each in panel
        ]
        for done, question in enumerate(_questions(config, read()), start=1):
            votes.append((question.cluster, question.votes))
            for each, said in zip(panel, replies, strict=True):
                forward, backward = each.hear(question, said)
                found[each.judge.name].append(_comparison(question, forward, backward))
                file.write(_line(question, each.judge, forward, backward))
            work.progress(done * len(panel), questions * len(panel), "comparisons")
    for each in panel:
        each.check()
    reports = {name: judge_report(rows) for name, rows in found.items()}
    people = people_report(votes)
    write_json(work.path / TRIAL_FILE, {"people": people, "judges": reports})
    work.drop(dropped)
    return {
        "comparisons": questions,
        "dropped": {"nothing_to_compare": len(dropped)} if dropped else {},
        "people": people["agreement_of_two"]["mean"],
        "judges": {name: _short(report) for name, report in reports.items()},
    }


class _Tried:
    """Asks one judge, and reads what it says."""

    def __init__(self, config: TryJudge, judge: Model, prompts: Prompts, seed: int) -> None:
        self.judge, self._config, self._prompts, self._seed = judge, config, prompts, seed
        self._structured = is_structured(judge)
        self._asked = self._read = 0
        self._first_bad: Reply | None = None

    def requests(self, questions: Iterator[Question]) -> Iterator[Request]:
        """Two for each question."""
        for question in questions:
            for sitting in question.sittings(self._seed):
                yield self._request(sitting)

    def _request(self, sitting: Sitting) -> Request:
        messages = render_pair_prompt(
            sitting.row.prompt.messages, sitting.texts, structured=self._structured, render=self._prompts.render
        )
        return Request(
            messages=messages,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            seed=request_seed(self._seed, sitting.row.id, *sitting.order),
            schema=SCHEMA if self._structured else "",
            attempts=1 + self._config.ask_again,
            accept=lambda reply: self._share(sitting, reply) is not None,
        )

    def _share(self, sitting: Sitting, reply: Reply) -> float | None:
        """What the text shown first got of the win."""
        if not self._config.is_whole(reply):
            return None
        return read_comparison(reply.text, structured=self._structured, quoted=sitting.shown)[0].score

    def hear(self, question: Question, replies: Iterator[Reply]) -> tuple[float | None, float | None]:
        """The first answer's share where it is shown first, and where it is shown second."""
        shares: dict[bool, float | None] = {}
        for sitting in question.sittings(self._seed):
            reply = next(replies)
            share = self._share(sitting, reply)
            self._asked += 1
            self._read += share is not None
            if share is None:
                self._first_bad = self._first_bad or reply
            first = sitting.order == question.places
            shares[first] = share if first or share is None else 1 - share
        return shares[True], shares[False]

    def check(self) -> None:
        """TeacherError where too little could be read."""
        coverage = self._read / self._asked
        if coverage < self._config.min_coverage:
            bad = self._first_bad or Reply("")
            said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
            raise TeacherError(
                self.judge.name,
                f"only {coverage:.0%} of {self._asked} verdicts could be read; expected "
                f"{self._config.min_coverage:.0%}. The first that could not: {said!r}",
                remedy(bad, "Use a judge that keeps to the form, or lower min_coverage", "max_tokens"),
            )


def _reader(config: TryJudge, data: Data) -> Callable[[], Iterator[Answers]]:
    """Reads the labelled rows, from the start each time it is called."""
    pairs = data.kind == "pairs"
    if data.kind == "file":  # whatever its shape, it has people's ratings or it has pairs
        first = next(examine(data.path, Answers))
        pairs = first.record is None

    def rows() -> Iterator[Answers]:
        found = map(_as_answers, data.rows(Pair)) if pairs else data.rows(Answers)
        yield from islice(found, config.limit)

    return rows


def _as_answers(pair: Pair) -> Answers:
    """A pair as two answers that one person rated."""

    def candidate(model: str, said: Sequence[Message], score: float) -> Candidate:
        text = "\n\n".join(f"{m.role.capitalize()}: {m.content}" if len(said) > 1 else m.content for m in said)
        return Candidate.model_validate(
            {"model": model, "text": text, "ratings": [{"aspect": PREFERENCE, "score": score}]}
        )

    candidates = candidate("chosen", pair.chosen, 1.0), candidate("rejected", pair.rejected, 0.0)
    return Answers(id=pair.id, prompt=Prompt(id=pair.id, messages=pair.prompt), candidates=candidates)


def _questions(config: TryJudge, rows: Iterator[Answers], dropped: list[Dropped] | None = None) -> Iterator[Question]:
    """Every two usable answers of each row that the same people rated. Rows without any are told in `dropped`."""
    for row in rows:
        found = False
        usable = [place for place, candidate in enumerate(row.candidates) if candidate.usable]
        for one, other in combinations(usable, 2):
            votes = _votes(config, row.candidates[one], row.candidates[other])
            if votes and row.candidates[one].text != row.candidates[other].text:
                found = True
                yield Question(row, (one, other), votes)
        if not found and dropped is not None:
            dropped.append(Dropped(id=row.id, reason="nothing_to_compare", detail=f"{len(usable)} usable answers"))


def _votes(config: TryJudge, one: Candidate, other: Candidate) -> tuple[float, ...]:
    """Of everyone who rated both answers: whether the first has the higher mean, 1, the lower, 0, or neither."""
    means = []
    for candidate in (one, other):
        given: dict[str, list[Fraction]] = {}
        for rating in candidate.ratings:
            if rating.score is not None and rating.aspect == (config.aspect or rating.aspect):
                given.setdefault(rating.judge, []).append(exact_score(rating.score))
        means.append({person: sum(scores, Fraction(0)) / len(scores) for person, scores in given.items()})
    first, second = means
    return tuple(
        (1 + (first[person] > second[person]) - (first[person] < second[person])) / 2
        for person in first
        if person in second
    )


def _comparison(question: Question, forward: float | None, backward: float | None) -> Comparison:
    one, other = (question.row.candidates[place].text for place in question.places)
    return Comparison(question.cluster, majority(question.votes), forward, backward, doublings(one, other))


def _line(question: Question, judge: Model, forward: float | None, backward: float | None) -> str:
    """One comparison as JSON: shares of the answer that stands first in the row."""
    value = {
        "id": question.row.id,
        "places": question.places,
        "people": question.votes,
        "judge": judge.name,
        "shown_first": forward,
        "shown_second": backward,
    }
    return json.dumps(value, ensure_ascii=False) + "\n"


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the manifest; the whole stands in trial.json."""
    return {
        "coverage": report["coverage"],
        "agreement": report["agreement"]["mean"],
        "kappa": report["kappa"]["mean"],
        "first_share": report["position"]["first_share"]["mean"],
        "consistency": report["position"]["consistency"]["mean"],
        "longer_share": report["length"]["longer_share"]["mean"],
    }


STAGE = Stage(config=TryJudge, produces="trial", run=run, version=2)
