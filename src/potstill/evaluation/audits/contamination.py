"""Contamination: evaluation questions that stand in what a model learnt from, anywhere in its lineage.

A question stands in a row as a whole where the row holds all its words in order (five at least, fewer only as a whole
turn), or in parts where it is long, runs of eight words that it shares with one row cover two thirds of its words, and
the row has all of its numbers and names: a short one with another word in it is another question, and so is one of the
same template about others. Runs that are ordinary count for nothing: those of several
questions, and those of more than ten rows (Brown et al. 2020, appendix C). This is a count of all questions and not a
sample, so that there is no chance in it and nothing to test.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from potstill.curation.decontaminate import LEAST_RUN, Words, words
from potstill.evaluation.audits.base import Cell, Danger, Figure, Plot, Point, Series, figure
from potstill.evaluation.audits.hypotheses import Hypothesis, contrast
from potstill.evaluation.audits.thresholds import COVERED, LEAKED, LEAST_RUNS, ORDINARY_ROWS, RUN_WORDS
from potstill.evaluation.scores import SuiteResult
from potstill.records import Answers, Chat, Feedback, Pair, Prompt, Record, Text

DANGER = Danger(
    "contamination",
    "Contamination",
    "Does less than one per cent of a suite's questions stand in what the model and its ancestors learnt from?",
    "Brown et al. 2020 (GPT-3), appendix C; Touvron et al. 2023 (Llama 2), appendix A.6",
    {"share": LEAKED, "run_words": RUN_WORDS, "covered": COVERED, "ordinary_rows": ORDINARY_ROWS},
)
EXAMPLES = 3
_SENTENCE_ENDS = re.compile(r"[.!?:;\n\"“”„«»()]+")
_TOKEN = re.compile(r"\w+")

How = Literal["whole", "parts"]


class Asked(NamedTuple):
    """A question of a suite."""

    suite: str
    question: str


class Hit(NamedTuple):
    """Where a question was found first."""

    how: How
    row: str
    """The row's id."""


@dataclass(frozen=True)
class Reading:
    """Rows that a model, or an ancestor of it, learnt from; or from which those were made."""

    name: str
    """The stage that made them, or the file."""
    rows: Callable[[], Iterable[Record]]
    """Reads them from the start, each time it is called."""


@dataclass(frozen=True)
class Details:
    """What tells a question from others of its template, in lower case."""

    numbers: frozenset[str]
    capitals: frozenset[str]
    """Words with a capital within a sentence: names, unless they are written small elsewhere."""
    openings: frozenset[str]
    """Words with a capital that begin a sentence: names, if another question has them within one."""
    small: frozenset[str]


def _details(text: str) -> Details:
    capitals, openings, small = set[str](), set[str](), set[str]()
    for sentence in _SENTENCE_ENDS.split(text):
        for place, token in enumerate(_TOKEN.findall(sentence)):
            if token[0].isupper() and len(token) > 1:  # neither I nor x
                (capitals if place else openings).update(words(token))
            else:
                small.update(words(token))
    numbers = (word for word in words(text) if any(sign.isdigit() for sign in word))
    return Details(frozenset(numbers), frozenset(capitals), frozenset(openings), frozenset(small))


@dataclass
class Questions:
    """The questions of all suites, ready to be looked for."""

    size: int = RUN_WORDS
    _texts: dict[Words, list[Asked]] = field(default_factory=dict)
    _runs: dict[Words, set[Words]] = field(default_factory=lambda: defaultdict(set))
    _begin: dict[Words, set[Words]] = field(default_factory=lambda: defaultdict(set))
    _details: dict[Words, Details] = field(default_factory=dict)

    def add(self, asked: Asked, opening: str) -> None:
        """A question by what its user says first: a follow-up ("Say that again.") means little without it."""
        said = words(opening)
        if not said:
            return
        named = self._texts.setdefault(said, [])
        if asked not in named:
            named.append(asked)
        if len(said) >= LEAST_RUNS * self.size:
            for i in range(len(said) - self.size + 1):
                self._runs[said[i : i + self.size]].add(said)
            self._details.setdefault(said, _details(opening))
        if len(said) >= LEAST_RUN:
            self._begin[said[:LEAST_RUN]].add(said)

    def find(self, rows: Callable[[], Iterable[Record]]) -> dict[Asked, Hit]:
        """The questions that stand in these rows, which are read twice: first to learn what is ordinary in them."""
        spread: Counter[Words] = Counter()
        for row in rows():
            met = {run for said in pieces(row) for run in _runs(said, self.size) if run in self._runs}
            spread.update(met)
        telling = {
            run for run, texts in self._runs.items() if len(texts) == 1 and 0 < spread[run] <= ORDINARY_ROWS
        }  # fmt: skip
        found: dict[Asked, Hit] = {}
        needed = self._needed()
        for row in rows():
            for text, how in self._in_row(row, telling, needed):
                for asked in self._texts[text]:
                    if asked not in found or (how == "whole" and found[asked].how == "parts"):
                        found[asked] = Hit(how, getattr(row, "id", ""))
        return found

    def _needed(self) -> dict[Words, frozenset[str]]:
        """By question: the numbers and names that a row which holds it in parts has too."""
        every = self._details.values()
        names = {word for one in every for word in one.capitals} - {word for one in every for word in one.small}
        return {said: one.numbers | names & (one.capitals | one.openings) for said, one in self._details.items()}

    def _in_row(
        self, row: Record, telling: set[Words], needed: Mapping[Words, frozenset[str]]
    ) -> Iterator[tuple[Words, How]]:
        shared: dict[Words, set[int]] = defaultdict(set)
        turns = pieces(row)
        for said in turns:
            if said in self._texts:
                yield said, "whole"
            for i in range(len(said) - LEAST_RUN + 1):
                for text in self._begin.get(said[i : i + LEAST_RUN], ()):
                    if said[i : i + len(text)] == text:
                        yield text, "whole"
                run = said[i : i + self.size]
                if run in telling:
                    (text,) = self._runs[run]
                    place = next(j for j in range(len(text)) if text[j : j + self.size] == run)
                    shared[text] |= set(range(place, place + self.size))
        has = {word for said in turns for word in said} if shared else set()
        for text, covered in shared.items():
            if len(covered) >= COVERED * len(text) and needed[text] <= has:
                yield text, "parts"


def _runs(said: Words, size: int) -> Iterator[Words]:
    return (said[i : i + size] for i in range(len(said) - size + 1))


def pieces(row: Record) -> list[Words]:
    """Everything that a row says, turn by turn, as words."""
    match row:
        case Text():
            texts = [row.text]
        case Chat():
            texts = [message.content for message in row.messages]
        case Prompt():
            texts = [*(message.content for message in row.messages), *row.follow_ups]
        case Pair():
            texts = [message.content for message in (*row.prompt, *row.chosen, *row.rejected)]
        case Feedback():
            texts = [message.content for message in (*row.prompt, *row.answer)]
        case Answers():
            texts = [message.content for message in row.prompt.messages]
            texts += [candidate.text for candidate in row.candidates]
        case _:
            texts = []
    return [words(text) for text in texts]


@dataclass(frozen=True)
class Lineage:
    """What stands behind one model, rows by their keys."""

    learnt: Mapping[str, tuple[str, ...]]
    """Rows that were learnt from, with the stages that learnt from them."""
    behind: Mapping[str, tuple[str, ...]]
    """Of those: the rows that they were made from, the earliest first."""
    readings: Mapping[str, Reading]
    """How to read all of them."""
    unread: tuple[str, ...] = ()
    """What was learnt from as well, and could not be read here."""


Hits = Mapping[str, Mapping[Asked, Hit]]
"""By the key of rows: which questions stand in them."""


def search(questions: Questions, lineages: Iterable[Lineage | None]) -> dict[str, dict[Asked, Hit]]:
    """What stands in the rows behind all models, each set of rows read once."""
    readings = {key: reading for one in lineages if one is not None for key, reading in one.readings.items()}
    return {key: questions.find(reading.rows) for key, reading in readings.items()}


def contamination(
    sizes: Mapping[str, int],
    lineages: Mapping[str, Lineage | None],
    hits: Hits,
    results: Mapping[str, SuiteResult],
) -> Danger:
    """`sizes`: questions by suite; `lineages`: None for a model that came from elsewhere; `results`: for its scores."""
    hypotheses, rows, notes, points = list[Hypothesis](), list[tuple[Cell, ...]](), list[str](), list[Point]()
    for model, lineage in lineages.items():
        for suite, size in sizes.items() if lineage is not None else ():
            assert lineage is not None
            found = _found(suite, lineage, hits)
            share = len(found) / size
            through = _through(found, lineage, hits)
            claim = f"learnt {len(found)} of the {size} questions of {suite}, through {through}"
            hypotheses.append(Hypothesis(model, suite, claim, share, share, share, size, LEAKED, float(share < LEAKED)))
            whole = sum(hit.how == "whole" for hit in found.values())
            rows.append((model, suite, Figure(share, share=True), str(whole), str(len(found) - whole), through,
                         _gain(model, set(found), results.get(suite))))  # fmt: skip
            points.append(Point(f"{model} on {suite}", share))
            notes += [f"{model}: '{asked.question}' of {suite} stands in row '{hit.row}'"
                      for asked, hit in list(found.items())[:EXAMPLES]]  # fmt: skip
        if lineage is not None and lineage.unread:
            notes.append(f"{model} learnt from {', '.join(lineage.unread)} too, which could not be searched")
    missing = {model: "what it learnt from is not known here, as no stage of this run made it"
               for model, lineage in lineages.items() if lineage is None}  # fmt: skip
    columns = ("model", "suite", "questions found", "whole", "in parts", "through", "score of those minus the others")
    plot = Plot("", "share of the questions", (Series("", tuple(points)),), 0.0)
    return replace(DANGER, hypotheses=tuple(hypotheses), columns=columns, rows=tuple(rows), plot=plot, missing=missing,
                   notes=tuple(dict.fromkeys(notes)))  # fmt: skip


def _found(suite: str, lineage: Lineage, hits: Hits) -> dict[Asked, Hit]:
    """The suite's questions in what the lineage learnt from; whole before in parts."""
    found: dict[Asked, Hit] = {}
    for key in lineage.learnt:
        for asked, hit in hits.get(key, {}).items():
            if asked.suite == suite and (asked not in found or (hit.how == "whole" and found[asked].how == "parts")):
                found[asked] = hit
    return found


def _through(found: Mapping[Asked, Hit], lineage: Lineage, hits: Hits) -> str:
    """The ways by which they came: "prompts → chats → sft"."""
    ways = []
    for key, learners in lineage.learnt.items():
        here = found.keys() & hits.get(key, {}).keys()
        if here:
            earlier = [one for one in lineage.behind.get(key, ()) if here & hits.get(one, {}).keys()]
            names = [lineage.readings[one].name for one in (*earlier, key)]
            ways.append(" → ".join([*names, " and ".join(learners)]))
    return "; ".join(dict.fromkeys(ways))


def _gain(model: str, found: set[Asked], result: SuiteResult | None) -> Cell:
    """The mean score of the questions that were found, minus that of the others."""
    if result is None or model not in result.observations or not found:
        return ""
    known = {asked.question for asked in found}
    scored = [(row.question in known, row.value) for row in result.observations[model] if row.value is not None]
    return figure(contrast([v for there, v in scored if there], [v for there, v in scored if not there]))
