"""How a judge is tried: what it is asked of a labelled row, how its replies are read, and what they come to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from potstill.errors import DataError, TeacherError
from potstill.evaluation import mt_bench
from potstill.evaluation.judge_grades import Graded, grades_report, order_of
from potstill.evaluation.judge_trial import Comparison, doublings, judge_report, list_lines, majority
from potstill.evaluation.sheets import Sheet, Turn
from potstill.records import Answers
from potstill.sources import Model
from potstill.stages.asking import Prompts
from potstill.stages.labelled import Question, cluster_of, people_grade, questions_of
from potstill.teachers.base import Reply, Request, remedy, request_seed
from potstill.teachers.pairwise import PREFERENCE, SCHEMA, read_comparison, render_pair_prompt
from potstill.teachers.sittings import Sitting, is_structured, shown_order

if TYPE_CHECKING:
    from potstill.stages.try_judge import TryJudge

REPLY_SHOWN = 120

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class How:
    """What decides how judges are asked."""

    config: "TryJudge"
    prompts: Prompts
    seed: int
    place: str
    """Where the labelled rows are from, for errors."""

    def seed_of(self, turn: int) -> int:
        """Of the requests of one asking, from 0."""
        return request_seed(self.seed, "again", turn) if turn else self.seed


@dataclass(frozen=True)
class Case:
    """What is asked together: a comparison, or the answers of a row."""

    row: Answers
    questions: tuple[Question, ...]
    """What people said of every two answers of it."""
    places: tuple[int, ...]
    """Its answers."""

    @property
    def cluster(self) -> str:
        """The prompt."""
        return cluster_of(self.row)


@dataclass(frozen=True)
class Ask:
    """One request, and how to read what comes back."""

    request: Request
    read: Callable[[Reply], float | None]


@dataclass
class Found:
    """What was heard of one judge."""

    comparisons: list[Comparison] = field(default_factory=list)
    answers: list[Graded] = field(default_factory=list)


class Way(Protocol):
    """One of the protocols."""

    REASON: ClassVar[str]
    """Why a row is left out."""
    NOTHING: ClassVar[str]
    """What to say where all are."""

    def cases(self, row: Answers) -> list[Case]:
        """What there is to ask of a row."""
        ...

    def asks(self, case: Case, judge: Model) -> Iterator[Ask]:
        """Every request, the repeated ones behind the first."""
        ...

    def heard(self, case: Case, values: Sequence[float | None], found: Found) -> Lines:
        """Keep what the requests of a case came to; gives back the lines of verdicts.jsonl."""
        ...

    def report(self, found: Found) -> dict[str, Any]:
        """Everything on one judge."""
        ...

    def short(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """What of it stands in the manifest."""
        ...


class InPairs:
    """Which of two answers is better, in both orders."""

    REASON: ClassVar[str] = "nothing_to_compare"
    NOTHING: ClassVar[str] = "no two answers of a row have ratings by the same people"

    def __init__(self, how: How) -> None:
        self._how = how

    def cases(self, row: Answers) -> list[Case]:
        questions = questions_of(row, self._how.config.aspect)
        return [Case(row, (question,), question.places) for question in questions]

    def _sittings(self, case: Case) -> Iterator[tuple[int, Sitting]]:
        """Both orders, in an order drawn by seed, each time that it is asked."""
        for turn in range(self._how.config.repeats):
            for reverse in range(2):
                order = shown_order(case.places, reverse, self._how.seed, case.row.id, PREFERENCE)
                yield turn, Sitting(case.row, PREFERENCE, order, reverse)

    def asks(self, case: Case, judge: Model) -> Iterator[Ask]:
        structured = is_structured(judge)
        for turn, sitting in self._sittings(case):
            read = self._reader(sitting, structured)
            yield Ask(self._request(sitting, turn, structured, read), read)

    def _request(self, sitting: Sitting, turn: int, structured: bool, read: Callable[[Reply], float | None]) -> Request:
        config, render = self._how.config, self._how.prompts.render
        return Request(
            messages=render_pair_prompt(
                sitting.row.prompt.messages, sitting.texts, structured=structured, render=render
            ),
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=request_seed(self._how.seed_of(turn), sitting.row.id, *sitting.order),
            sample=turn,
            schema=SCHEMA if structured else "",
            attempts=1 + config.ask_again,
            accept=lambda reply: read(reply) is not None,
        )

    def _reader(self, sitting: Sitting, structured: bool) -> Callable[[Reply], float | None]:
        """What the answer that stands first in the row got of the win."""
        first = sitting.order[0] < sitting.order[1]

        def read(reply: Reply) -> float | None:
            if not self._how.config.is_whole(reply):
                return None
            share = read_comparison(reply.text, structured=structured, quoted=sitting.shown)[0].score
            return share if first or share is None else 1 - share

        return read

    def heard(self, case: Case, values: Sequence[float | None], found: Found) -> Lines:
        (question,) = case.questions
        said: dict[int, dict[bool, float | None]] = {}
        for (turn, sitting), value in zip(self._sittings(case), values, strict=True):
            said.setdefault(turn, {})[sitting.order == case.places] = value
        (forward, backward), *again = ((turn[True], turn[False]) for turn in said.values())
        found.comparisons.append(_comparison(question, forward, backward, tuple(again)))
        line: dict[str, Any] = {"id": case.row.id, "places": case.places, "people": question.votes}
        line |= {"shown_first": forward, "shown_second": backward}
        return [line | ({"again": again} if again else {})]

    def report(self, found: Found) -> dict[str, Any]:
        return judge_report(found.comparisons)

    def short(self, report: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "coverage": report["coverage"]["mean"],
            "agreement": report["agreement"]["mean"],
            "kappa": report["kappa"]["mean"],
            "first_share": report["position"]["first_share"]["mean"],
            "consistency": report["position"]["consistency"]["mean"],
            "longer_share": report["length"]["longer_share"]["mean"],
        } | ({"self_consistency": report["again"]["same"]["mean"]} if report["again"] else {})


class Grading:
    """A grade from 1 to 10 for each answer by itself, in the words and as the suite mt_bench of `evaluate` asks."""

    REASON: ClassVar[str] = "nothing_to_grade"
    NOTHING: ClassVar[str] = "no answer has ratings by people"

    def __init__(self, how: How, scale: tuple[float, float] | None) -> None:
        self._how, self._scale = how, scale

    def cases(self, row: Answers) -> list[Case]:
        questions = tuple(questions_of(row, self._how.config.aspect))
        compared = {place for question in questions for place in question.places}
        graded = {
            place for place, one in enumerate(row.candidates) if one.usable and self._grade(row, place) is not None
        }
        return [Case(row, questions, tuple(sorted(compared | graded)))] if compared | graded else []

    def _grade(self, row: Answers, place: int) -> Any:
        """People's, which has to be on their scale where one is given."""
        grade = people_grade(row.candidates[place], self._how.config.aspect)
        if grade is not None and self._scale is not None and not self._scale[0] <= grade <= self._scale[1]:
            what = f"row {row.id} has a grade of {float(grade):g} by people; expected {_spoken(self._scale)}, its scale"
            raise DataError(self._how.place, what, "Give the scale that people used, or name the aspect that is on it")
        return grade

    def asks(self, case: Case, judge: Model) -> Iterator[Ask]:
        config = self._how.config
        for place in case.places:
            turn = Turn(case.row.prompt.messages[-1].content, case.row.candidates[place].text)
            sheet = Sheet("", "", case.row.prompt, (turn,))
            read = self._reader(turn)
            for number in range(config.repeats):
                request = mt_bench.ask_judge(config.max_tokens, self._how.seed_of(number))(sheet, 0)
                yield Ask(self._request(request, number, read), read)

    def _request(self, request: Request, number: int, read: Callable[[Reply], float | None]) -> Request:
        return replace(
            request,
            temperature=self._how.config.temperature,
            sample=number,
            attempts=1 + self._how.config.ask_again,
            accept=lambda reply: read(reply) is not None,
        )

    def _reader(self, turn: Turn) -> Callable[[Reply], float | None]:
        return lambda reply: mt_bench.read_grade(turn, reply.text).score if self._how.config.is_whole(reply) else None

    def heard(self, case: Case, values: Sequence[float | None], found: Found) -> Lines:
        each = self._how.config.repeats
        grades = {place: tuple(values[i * each : (i + 1) * each]) for i, place in enumerate(case.places)}
        lines: Lines = []
        for place, given in grades.items():
            people = self._grade(case.row, place)
            found.answers.append(Graded(case.cluster, people, given))
            told = None if people is None else float(people)
            lines.append({"id": case.row.id, "place": place, "people": told, "grades": given})
        for question in case.questions:
            share = order_of(*(grades[place][0] for place in question.places))
            found.comparisons.append(_comparison(question, share, share))
        return lines

    def report(self, found: Found) -> dict[str, Any]:
        scales = (self._scale, (mt_bench.LOWEST, mt_bench.HIGHEST)) if self._scale else None
        return grades_report(found.answers, found.comparisons, scales)

    def short(self, report: Mapping[str, Any]) -> dict[str, Any]:
        found = {"coverage": report["coverage"]["mean"], "agreement": report["agreement"]["mean"]}
        found["kappa"] = report["kappa"]["mean"]
        if report["correlation"]:
            found |= {name: report["correlation"][name]["mean"] for name in ("spearman", "kendall")}
        if report["error"]:
            found["error"] = report["error"]["absolute"]["mean"]
        return found | ({"self_consistency": report["again"]["same"]["mean"]} if report["again"] else {})


def _spoken(scale: tuple[float, float]) -> str:
    return f"{scale[0]:g} to {scale[1]:g}"


def _comparison(
    question: Question,
    forward: float | None,
    backward: float | None,
    again: tuple[tuple[float | None, float | None], ...] = (),
) -> Comparison:
    one, other = question.texts
    longer, more = doublings(one, other), list_lines(one) - list_lines(other)
    return Comparison(cluster_of(question.row), majority(question.votes), forward, backward, longer, more, again)


class OnTrial:
    """Asks one judge, and keeps what it says."""

    def __init__(self, way: Way, judge: Model) -> None:
        self.judge, self.found, self._way = judge, Found(), way
        self._asked = self._read = 0
        self._first_bad: Reply | None = None

    def requests(self, cases: Iterable[Case]) -> Iterator[Request]:
        """All of them, in the order in which `hear` reads."""
        for case in cases:
            for ask in self._way.asks(case, self.judge):
                yield ask.request

    def hear(self, case: Case, replies: Iterator[Reply]) -> Lines:
        """What was said of a case, as lines of verdicts.jsonl."""
        values: list[float | None] = []
        for ask in self._way.asks(case, self.judge):
            reply = next(replies)
            value = ask.read(reply)
            self._asked += 1
            self._read += value is not None
            if value is None:
                self._first_bad = self._first_bad or reply
            values.append(value)
        return [{"judge": self.judge.name, **line} for line in self._way.heard(case, values, self.found)]

    def check(self, least: float) -> None:
        """TeacherError where too little could be read."""
        coverage = self._read / self._asked
        if coverage < least:
            bad = self._first_bad or Reply("")
            said = bad.reason or " ".join(bad.text.split())[:REPLY_SHOWN]
            raise TeacherError(
                self.judge.name,
                f"only {coverage:.0%} of {self._asked} verdicts could be read; expected {least:.0%}. The first that "
                f"could not: {said!r}",
                remedy(bad, "Use a judge that keeps to the form, or lower min_coverage", "max_tokens"),
            )
