"""Stage `curate`: dialogues become fewer and better ones; every one that is left out is kept aside with its reason.

In this order, each step seeing what the one before left: truecase; drop what says nothing, is spoilt, too short or too
long, in another language, repeats itself or the user, hedges or refuses; what overlaps with evaluation prompts; what
the user's own filters drop; duplicates of dialogues that were kept. Memory does not grow with the rows: they lie on
disk between the steps, and so does what has to be known of all of them.
"""

import heapq
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from potstill.artifact import DROPPED_FILE, ROWS_FILE, storage_errors, write_rows
from potstill.curation.backends import BACKENDS, BackendName
from potstill.curation.decontaminate import keeping_out
from potstill.curation.deduplicate import Deduplicator, Duplicate, save, saved
from potstill.curation.diversity import before_and_after, draw
from potstill.curation.examine import EXAMPLES, Check, Examiner, example, hedging, refusing, spans
from potstill.curation.filters import (
    Lengths,
    find_broken_text,
    find_echo,
    find_length,
    find_repeated_answer,
    find_repetition,
    find_silence,
)
from potstill.curation.language import LANGUAGES, find_language
from potstill.curation.meaning import Embedder, same_meaning
from potstill.curation.staged import Staged
from potstill.curation.truecase import FormCounts, Truecaser
from potstill.errors import DataError
from potstill.own import OwnFunction
from potstill.records import Chat, Dropped
from potstill.sources import Data, Inputs, Spec
from potstill.stages.base import Expected, Facts, LocalModelName, Reference, Stage, StageConfig, Work


class Meaning(Spec):
    """Duplicates by meaning."""

    model: LocalModelName
    """A local encoder or causal language model; a text's embedding is the mean of its last hidden states."""
    threshold: float = Field(default=0.95, gt=0, le=1)
    """The cosine of two embeddings from which the later dialogue is dropped."""
    max_tokens: int = Field(default=256, ge=1)
    """How far into a dialogue the model reads."""


class Curate(StageConfig):
    """Mend and filter dialogues."""

    HOW: ClassVar[frozenset[str]] = frozenset({"backend"})

    kind: Literal["curate"]
    data: Annotated[str, Reference(("chats",))]
    """The dialogues."""
    truecase: bool = False
    """Give broken capitals back, as the rest of the dialogues teach them."""
    hedges: Literal["drop", "strip", "keep"] = "drop"
    """Dialogues whose assistant talks of being a machine without opinions or feelings: drop them, as Zephyr does;
    strip takes away only the sentences that do."""
    refusals: Literal["drop", "keep"] = "drop"
    """Dialogues in which the assistant declines to answer."""
    max_repetition: float = Field(default=0.3, ge=0, le=1)
    """Drop a dialogue with an answer that says more than this share of its runs of four words again. 1 drops none."""
    max_repeated_lines: float = Field(default=0.3, ge=0, le=1)
    """Drop a dialogue with an answer of which more than this share is lines or sentences said before. 1 drops none."""
    repeated_answers: Literal["drop", "keep"] = "drop"
    """Dialogues in which the assistant says the same in two turns."""
    echoes: Literal["drop", "keep"] = "drop"
    """Dialogues with an answer that only repeats what the user said."""
    broken_text: Literal["drop", "keep"] = "drop"
    """Dialogues with characters that were decoded wrongly, control characters, or hardly any words."""
    min_words: int | None = Field(default=None, ge=1)
    """Drop a dialogue with an answer of fewer words; one that calls a tool may be shorter."""
    max_words: int | None = Field(default=None, ge=1)
    """Drop a dialogue with an answer of more words."""
    min_characters: int | None = Field(default=None, ge=1)
    """Drop shorter dialogues."""
    max_characters: int | None = Field(default=None, ge=1)
    """Drop longer dialogues."""
    languages: tuple[str, ...] = ()
    """Keep dialogues whose answers are in one of these languages (ISO 639-1 codes, such as en), or in none that can be
    told, as code and short answers are. Default: any language."""
    decontaminate: Annotated[str | tuple[str, ...], Reference(("prompts", "chats", "pairs"), evaluations=True)] = ()
    """Evaluation prompts that no user turn may repeat. evaluations: whatever the recipe's evaluate stages ask or
    score."""
    overlap_words: int = Field(default=13, ge=5)
    """How many words in a row, shared with an evaluation prompt, count as repeating it."""
    filters: tuple[OwnFunction, ...] = ()
    """Your own functions that say of a dialogue (a records.Chat) whether it stays, each written mine.py:name: they
    return True or None to keep it; False, or words that say why, to drop it. Their files count for the stage's key."""
    deduplicate: Annotated[float, Field(ge=0.1, le=1)] | Literal["exact"] | None = None
    """Drop copies of a kept dialogue. exact: those that differ by case and blanks alone; a number: also those whose
    words are this much alike, by the Jaccard similarity of their runs of three words."""
    meaning: Meaning | None = None
    """Drop dialogues that mean the same as a kept one, as a model of your own sees it; asked after the words were
    compared. Each is compared with all that were kept, so time grows with the square of their number."""
    backend: BackendName = "local"
    """Where dialogues are examined: local, in this process; ray, over a Ray cluster. The result is the same."""

    def extras(self) -> tuple[str, ...]:
        return ("ray",) if self.backend == "ray" else ()

    @field_validator("languages")
    @classmethod
    def _can_be_told(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [code for code in languages if code not in LANGUAGES]
        if unknown:
            raise ValueError(
                f"'{unknown[0]}' is no language that can be told; choose from {', '.join(sorted(LANGUAGES))}"
            )
        return languages

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        for what, least, most in (
            ("words", self.min_words, self.max_words),
            ("characters", self.min_characters, self.max_characters),
        ):
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} ({least}) is more than max_{what} ({most}), so nothing would stay")
        return self

    def expect(self, rows: Mapping[str, int]) -> Expected:
        return Expected(rows=rows["data"], tokens_per_row=rows.get("data.tokens"))

    @property
    def checks(self) -> list[Check]:
        """What a dialogue is asked on its own, in order."""
        lengths = Lengths(self.min_words, self.max_words, self.min_characters, self.max_characters)
        asked: list[tuple[bool, Check]] = [
            (True, find_silence),
            (self.broken_text == "drop", find_broken_text),
            (True, partial(find_length, lengths=lengths)),
            (bool(self.languages), partial(find_language, languages=frozenset(self.languages))),
            (True, partial(find_repetition, max_runs=self.max_repetition, max_lines=self.max_repeated_lines)),
            (self.repeated_answers == "drop", find_repeated_answer),
            (self.echoes == "drop", find_echo),
            (self.hedges == "drop", hedging),
            (self.refusals == "drop", refusing),
        ]
        return [check for wanted, check in asked if wanted]

    @property
    def threshold(self) -> float | None:
        """The similarity of near duplicates."""
        return self.deduplicate if isinstance(self.deduplicate, float) else None


class _Tally:
    """What was dropped for which reason, with the first few of each."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}

    def add(self, reasons: Mapping[str, int], examples: Mapping[str, Iterable[dict[str, str]]]) -> None:
        self.reasons.update(reasons)
        for reason, found in examples.items():
            shown = self.examples.setdefault(reason, [])
            shown += list(found)[: EXAMPLES - len(shown)]


def run(config: Curate, inputs: Inputs, work: Work) -> Facts:
    """Learn capitals and evaluation prompts, examine each dialogue, then compare them with each other."""
    data = inputs.one("data")
    with _desk(work) as desk, Staged(desk) as staged:
        path, rows = _lines(data, desk)
        forms = _forms(data) if config.truecase else FormCounts()
        examiner = Examiner(
            path,
            Truecaser(forms) if config.truecase else None,
            config.hedges == "strip",
            config.checks,
            keeping_out(config.overlap_words, inputs.data.get("decontaminate", ())),
            inputs.functions.get("filters", ()),
            config.deduplicate is not None,
            config.threshold,
        )
        deduplicator = Deduplicator(desk / "duplicates", config.threshold)
        tally, counts = _Tally(), Counter[str]()
        done = 0
        for examined in BACKENDS[config.backend](examiner, spans(path)):
            staged.add(examined)
            if examined.fingerprints_D2 is not None:
                deduplicator.add(examined.fingerprints_D2, examined.bands_DB)
            counts += examined.counts
            tally.add(examined.reasons, examined.examples)
            done += len(examined.lines)
            work.progress(done, rows, "dialogues")
        staged.finish()
        kept = _write(staged, _duplicates(config, inputs, staged, deduplicator, desk), tally, work)
        reasons = dict(sorted(tally.reasons.items()))
        if kept == 0:
            why = ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "there were none"
            raise DataError(data.name, f"no dialogue is left ({why})", "Loosen the filter that dropped them")
        figures = before_and_after(draw(path, rows, work.seed), draw(work.path / ROWS_FILE, kept, work.seed), work.seed)
    return {
        "rows": kept,
        "read": rows,
        "dropped": reasons,
        "examples": dict(sorted(tally.examples.items())),
        "diversity": figures,
        "pruned_forms": forms.pruned,
        "truecased_dialogues": counts["truecased_dialogues"],
        "truecased_words": counts["truecased_words"],
        "stripped_dialogues": counts["stripped_dialogues"],
    }


def _forms(data: Data) -> FormCounts:
    """How often each word stands in which capitals."""
    forms = FormCounts()
    for chat in data.rows(Chat):
        for message in chat.messages:
            forms.add(message.content)
    return forms


@contextmanager
def _desk(work: Work) -> Iterator[Path]:
    """A folder for what lies on disk while the stage works."""
    desk = (work.state / "curation").resolve()
    shutil.rmtree(desk, ignore_errors=True)
    with storage_errors(desk):
        desk.mkdir(parents=True)
    try:
        yield desk
    finally:
        shutil.rmtree(desk, ignore_errors=True)


def _lines(data: Data, desk: Path) -> tuple[Path, int]:
    """The dialogues as a file of lines that potstill wrote, and how many they are."""
    if data.kind == "file" or data.part:
        return desk / "given.jsonl", write_rows(desk / "given.jsonl", data.rows(Chat))
    path = (data.path / ROWS_FILE).resolve()
    return path, sum(span.rows for span in spans(path))


def _duplicates(
    config: Curate, inputs: Inputs, staged: Staged, deduplicator: Deduplicator, desk: Path
) -> Iterator[tuple[str, Duplicate]]:
    """Every row to leave out for one that stays, in order, with the reason."""
    alike = deduplicator.duplicates(staged.text)
    if config.meaning is not None:
        embed = Embedder(inputs.model("meaning.model"), config.meaning.max_tokens)
        path = desk / "alike"
        save(path, alike)
        alike = saved(path)
        texts = staged.texts(but=(duplicate.row for duplicate in saved(path)))
        meant = same_meaning(texts, embed, config.meaning.threshold, desk)
        named = (("same_meaning", duplicate) for duplicate in meant)
        yield from heapq.merge(_named(alike), named, key=lambda pair: pair[1].row)
    else:
        yield from _named(alike)


def _named(alike: Iterable[Duplicate]) -> Iterator[tuple[str, Duplicate]]:
    for duplicate in alike:
        yield "duplicate" if duplicate.similarity is None else "near_duplicate", duplicate


def _write(staged: Staged, duplicates: Iterator[tuple[str, Duplicate]], tally: _Tally, work: Work) -> int:
    """The rows that stay and those that were left out, both in the data's order; returns how many stay."""
    kept = 0
    reason, duplicate = next(duplicates, ("", None))
    rows, left_out = work.path / ROWS_FILE, work.path / DROPPED_FILE
    with storage_errors(work.path), rows.open("wb") as stay, left_out.open("wb") as go:
        for number, line in staged.lines():
            if number is None:
                go.write(line)
            elif duplicate is None or duplicate.row != number:
                stay.write(line)
                kept += 1
            else:
                go.write(_dropped(staged, reason, duplicate, tally).to_line().encode())
                reason, duplicate = next(duplicates, ("", None))
    return kept


def _dropped(staged: Staged, reason: str, duplicate: Duplicate, tally: _Tally) -> Dropped:
    chat, first = staged.chat(duplicate.row), staged.chat(duplicate.of).id
    detail = first if duplicate.similarity is None else f"{first}: {duplicate.similarity:.3f}"
    dropped = Dropped(id=chat.id, reason=reason, detail=detail, chat=chat)
    tally.add({reason: 1}, {reason: [example(dropped, chat)]})
    return dropped


STAGE = Stage(config=Curate, produces="chats", run=run, version=3)
