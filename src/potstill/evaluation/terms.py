"""Under which terms scores came about: what was asked, who judged, against whom, how. Only like is compared with like.

What is sealed with an evaluation, or stands in a file's rows, is compared; what nobody wrote down is not made up.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from potstill.artifact import MANIFEST, read_json
from potstill.errors import DataError
from potstill.evaluation.alpaca_eval import Annotation, question_of
from potstill.evaluation.continued import ORDERS_COLUMN
from potstill.evaluation.fastchat import Judgment, PairJudgment, Question
from potstill.reading.files import quote

ANSWERS_FILE = "answers.jsonl"
ROWS = ("questions", "chats", "pairs")
"""The fields of a suite that name what it asks or scores."""
BESIDE = {"protocol", *ROWS, "files", "judge", "baseline", "recorded", "judgments", "aspects"}
BESIDE |= {"batch_size", "server", "chat_template"}
"""Fields of a suite that are compared otherwise, or change no number."""
ANSWERING = {"temperature", "temperatures", "max_calls", "tool_seconds", "reference"}
"""Fields of a suite that change what models say, or what they started from, and not what is measured in it."""

Place = tuple[str, int]
"""A question's id, and a turn of it from 1."""


class Text(NamedTuple):
    """What tells a text from others, and its beginning: the whole texts of large suites would fill the memory."""

    digest: bytes
    beginning: str

    @classmethod
    def of(cls, text: str) -> "Text":
        """Space counts as space, however much of it there is."""
        return cls(blake2b(" ".join(text.split()).encode(errors="replace"), digest_size=16).digest(), quote(text))


@dataclass(frozen=True)
class Asked:
    """What was said to models, and what they were compared with."""

    texts: Mapping[Place, Text] = field(default_factory=dict)
    """Of the user."""
    answers: Mapping[Place, Text] = field(default_factory=dict)
    """Of the baseline."""


@dataclass(frozen=True)
class Party:
    """A judge or a baseline."""

    name: str
    served: str = ""
    """As its server calls it, where that is known."""
    key: str = ""
    """Of whatever decides its words, as it is sealed."""

    def is_(self, other: "Party") -> bool:
        """Whether both are the same, as far as is known."""
        if self.key and other.key:
            return self.key == other.key
        return bool({self.name, self.served} & {other.name, other.served} - {""})

    def beside(self, other: "Party") -> str:
        """What it is called, so that it can be told from the other."""
        if self.name != other.name:
            return f"'{self.name}'"
        if self.served != other.served:
            return f"'{self.name}' ({self.served})"
        return f"'{self.name}' ({f'key {self.key[:12]}' if self.key else 'with other answers'})"


class Setting(NamedTuple):
    """A field of a recipe: its value, and what is sealed of the file or stage that it names."""

    value: Any
    key: str = ""

    def __str__(self) -> str:
        shown = "none" if self.value in (None, {}, [], ()) else json.dumps(self.value, ensure_ascii=False)
        return quote(f"{shown} (key {self.key[:12]})" if self.key else shown)


@dataclass(frozen=True)
class Terms:
    """Those of one suite. Empty where nothing is known of them."""

    judge: Party | None = None
    baseline: Party | None = None
    rows: Mapping[str, Setting] = field(default_factory=dict)
    """The data that is scored, by the field that names it, where texts do not tell it."""
    measure: Mapping[str, Setting] = field(default_factory=dict)
    """Whatever makes of it another measurement."""
    answering: Mapping[str, Setting] = field(default_factory=dict)
    """What changes answers alone."""
    asked: Callable[[], Asked] = Asked


def unlike(labels: tuple[str, str], before: Terms, after: Terms, questions: Collection[str]) -> tuple[str, str] | None:
    """Why scores under the two are not to be compared, and what to do; None where they are.

    `questions`: the ids that both have, in their order.
    """
    found = _other_questions(labels, before, after, questions)
    if found:
        return found
    if before.judge and after.judge and not before.judge.is_(after.judge):
        return _said_of(labels, "judged by", before.judge, after.judge, "judge")
    if before.baseline and after.baseline and not _same_baseline(before, after, questions):
        return _said_of(labels, "compared with", before.baseline, after.baseline, "baseline")
    for name, (one, other) in _other_settings(before.measure, after.measure):
        what = f"it is measured with {name} {one} in {labels[0]} and {other} in {labels[1]}"
        return what, f"Evaluate one of them again with the {name} of the other"
    return None


def remarks(labels: tuple[str, str], before: Terms, after: Terms) -> list[str]:
    """What differs and leaves the two comparable, and what one of them does not tell."""
    found = [
        f"{name} is {one} in {labels[0]} and {other} in {labels[1]}"
        for name, (one, other) in _other_settings(before.answering, after.answering)
    ]
    if (before.judge is None) != (after.judge is None):
        silent = labels[before.judge is not None]
        found.append(f"{silent} does not tell who judged, so nobody knows that it was the same judge")
    return found


def _other_questions(
    labels: tuple[str, str], before: Terms, after: Terms, questions: Collection[str]
) -> tuple[str, str] | None:
    """By their texts where both are known, else by the data that they are from."""
    texts, others = before.asked().texts, after.asked().texts
    meant = set(questions)
    asked = [place for place in texts if place in others and place[0] in meant]
    wrong = [place for place in asked if texts[place].digest != others[place].digest]
    remedy = "Compare two that were asked the same questions"
    if wrong:
        (question, turn), count = wrong[0], len({question for question, _ in wrong})
        where = f"'{question}'" + (f", turn {turn}," if turn > 1 else "")
        what = (
            f"the same ids stand for other questions: {where} is {texts[wrong[0]].beginning!r} in {labels[0]} and "
            f"{others[wrong[0]].beginning!r} in {labels[1]}; {count} of {len({one for one, _ in asked})} differ"
        )
        return what, remedy
    for name, (one, other) in [] if asked else _other_settings(before.rows, after.rows):
        if one.key and other.key:
            return f"{name} are {one} in {labels[0]} and {other} in {labels[1]}, which is other data", remedy
    return None


def _same_baseline(before: Terms, after: Terms, questions: Collection[str]) -> bool:
    """One that gave the same answers is the same, whatever it is called; one of which nothing is known may be."""
    if before.baseline is None or after.baseline is None:
        return True
    if before.baseline.key and before.baseline.key == after.baseline.key:
        return True
    answers, others, meant = before.asked().answers, after.asked().answers, set(questions)
    known = [place for place in answers if place in others and place[0] in meant]
    if known:
        return all(answers[place].digest == others[place].digest for place in known)
    return before.baseline.is_(after.baseline)


def _said_of(labels: tuple[str, str], how: str, one: Party, other: Party, what: str) -> tuple[str, str]:
    said = f"in {labels[0]} it is {how} {one.beside(other)}, in {labels[1]} {how.split()[1]} {other.beside(one)}"
    return said, f"Evaluate one of them again with the {what} of the other"


def _other_settings(
    before: Mapping[str, Setting], after: Mapping[str, Setting]
) -> Iterator[tuple[str, tuple[Setting, Setting]]]:
    """Those that differ, of the names that both have. A file is what it holds: its own name is nothing."""
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        if (one.key != other.key) if one.key or other.key else (one.value != other.value):
            yield name, (one, other)


def sealed_terms(folder: Path, suites: Iterable[str]) -> dict[str, Terms]:
    """Those of a sealed evaluation, by the names of its results; without its manifest no more than the texts."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    config, inputs = manifest.get("config", {}), manifest.get("inputs", {})
    notes, found = manifest.get("facts", {}).get("notes", {}), {}
    baselines = {name: note["baseline"] for name, note in notes.items() if "baseline" in note}
    read = cache(lambda: _read_asked(folder / ANSWERS_FILE, baselines))
    for name in suites:
        head = name.split("/")[0]
        suite = _Suite(name, config.get("suites", {}).get(head, {}), inputs)
        found[name] = Terms(
            judge=suite.party("judge", inputs.get("judge", ())),
            baseline=suite.party("baseline", inputs.get("models", ()), baselines.get(head, "")),
            rows=suite.rows,
            measure=suite.measure,
            answering=suite.answering(config),
            asked=partial(_of_suite, read, name),
        )
    return found


def _of_suite(read: Callable[[], Mapping[str, Asked]], name: str) -> Asked:
    """A result without lines of its own is computed from those of its suite."""
    found = read()
    return found.get(name) or found.get(name.split("/")[0]) or Asked()


@dataclass(frozen=True)
class _Suite:
    """A result's suite as it is sealed."""

    name: str
    """Of the result: SUITE, or SUITE/PART."""
    config: Mapping[str, Any]
    inputs: Mapping[str, Sequence[Mapping[str, Any]]]

    def party(self, field: str, otherwise: Sequence[Mapping[str, Any]], name: str = "") -> Party | None:
        """Whom a field names; where it names nobody, the first of the others."""
        if field not in self.config:
            return None
        source = next(iter(self.inputs.get(f"suites.{self._head}.{field}", ()) or otherwise), None)
        if source is None:
            return None
        told = source.get("model", {})
        return Party(name or source["name"], told.get("name", "") if told.get("endpoint") else "", source["key"])

    @property
    def rows(self) -> dict[str, Setting]:
        """What is asked or scored; of a task of several, its own alone."""
        found = {name: Setting(self.config[name], self._key(name)) for name in ROWS if name in self.config}
        files = self.config.get("files", {})
        own = files.keys() & self._task or files.keys()
        return found | {f"files.{task}": Setting(files[task], self._key(f"files.{task}")) for task in own}

    @property
    def measure(self) -> dict[str, Setting]:
        """Whatever nobody said to change answers alone."""
        found = {
            name: Setting(value, self._key(name))
            for name, value in self.config.items()
            if name not in BESIDE | ANSWERING
        }
        if not self.name.endswith("/length_controlled"):
            found.pop("difficulty", None)
        for task in self._task:
            found.pop("tasks")
            found["shots"] = Setting(self.config.get("shots", {}).get(task))
        return found

    def answering(self, stage: Mapping[str, Any]) -> dict[str, Setting]:
        """The suite's own settings, and those of the stage that concern what it asks for."""
        found = {name: Setting(self.config[name], self._key(name)) for name in ANSWERING & self.config.keys()}
        for name, needs in (("max_tokens", "questions"), ("judge_max_tokens", "judge"), ("ask_again", "judge")):
            if needs in self.config and name in stage:
                found[name] = Setting(stage[name])
        return found

    @property
    def _task(self) -> set[str]:
        """The one task of several that this is the result of, if it is."""
        return {self.name.split("/")[-1]} & set(self.config.get("tasks", ()))

    def _key(self, field: str) -> str:
        """What is sealed of the files and stages that a field names."""
        place = f"suites.{self._head}.{field}"
        keys = [
            f"{name.removeprefix(place)}{source['key']}"
            for name, group in sorted(self.inputs.items())
            if name == place or name.startswith(f"{place}.")
            for source in group
        ]
        return " ".join(keys)

    @property
    def _head(self) -> str:
        return self.name.split("/")[0]


def _read_asked(path: Path, baselines: Mapping[str, str]) -> dict[str, Asked]:
    """By suite, what the lines of answers.jsonl say, of which one is held at a time."""
    texts: dict[str, dict[Place, Text]] = {}
    answers: dict[str, dict[Place, Text]] = {}
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                turns = [((row["id"], turn), said) for turn, said in enumerate(row["turns"], start=1)]
                for place, said in turns:
                    if place not in texts.setdefault(row["suite"], {}):
                        texts[row["suite"]][place] = Text.of(said["user"])
                if row["model"] == baselines.get(row["suite"]):
                    answers.setdefault(row["suite"], {}).update((at, Text.of(said["assistant"])) for at, said in turns)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                what = "this line is not as potstill writes answers"
                raise DataError(f"{path}:{number}", what, "Run the evaluation again, which seals it anew") from error
    return {suite: Asked(found, answers.get(suite, {})) for suite, found in texts.items()}


def annotated_terms(judge: str, baseline: str, rows: Iterable[Annotation]) -> Terms:
    """Those of annotations. A question is its instruction, so that the same id is the same text."""
    rows = list(rows)
    orders = {str(row.rest.get(ORDERS_COLUMN, "drawn")) for row in rows}

    def asked() -> Asked:
        said = ((question_of(row), row.output_1) for row in rows)
        return Asked(answers={(question, 1): Text.of(text) for question, text in said if text is not None})

    measure = {"orders": Setting(" and ".join(sorted(orders)))}
    return Terms(Party(judge) if judge else None, Party(baseline), measure=measure, asked=cache(asked))


def judged_terms(
    judge: str,
    baseline: str | None,
    rows: Sequence[Judgment] | Sequence[PairJudgment],
    questions: Callable[[], Iterable[Question]],
) -> Terms:
    """Those of FastChat's judgments. The texts are what the judge was shown, else those of the file of questions."""

    def asked() -> Asked:
        texts = {(str(q.question_id), t): Text.of(said) for q in questions() for t, said in enumerate(q.turns, 1)}
        for row in rows:
            sent = row.user_prompt if isinstance(row, Judgment) else row.user_prompts[0]
            texts |= {(str(row.question_id), t): Text.of(said) for t, said in _shown(sent, row.turn)}
        return Asked(texts)

    names = {row.prompt_name.split("-")[0] for row in rows} - {""}  # single-v1 and single-math-v1 are one set of words
    measure = {"judge's words": Setting(" and ".join(sorted(names)))} if names else {}
    return Terms(
        Party(judge) if judge else None, Party(baseline) if baseline else None, measure=measure, asked=cache(asked)
    )


_ALONE = re.compile(r"\[(?:User )?Question\]\n(.*?)\n\n\[The Start of ", re.DOTALL)
_TURNS = re.compile(r"### User:\n(.*?)\n\n### (?:Assistant|Reference)", re.DOTALL)
_OURS = re.compile(r"^<user>\n(.*?)\n</user>$", re.DOTALL | re.MULTILINE)
_FRAMES = (_ALONE, _TURNS, _OURS)
"""How the benchmark's judge prompts and potstill's frame what the user said."""


def _shown(sent: str, turn: int) -> list[tuple[int, str]]:
    """What the user said up to that turn, by turn, in a judge's prompt.

    Each conversation and the reference repeat it. Where they do not, an answer holds such a frame too, and only what
    stands first is known. None of a prompt in words of anybody's own.
    """
    found = next((said for frame in _FRAMES if (said := frame.findall(sent))), [])
    if turn == 1 or found != found[:turn] * (len(found) // turn):
        found = found[:1]
    return list(enumerate(found[:turn], start=1))
