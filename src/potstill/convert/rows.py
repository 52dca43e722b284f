"""Where a config's rows come from, as stages of kind `import`; and what is held out, as a stage `evaluate`."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.convert.draft import Part

FILE_ENDS = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".txt", ".arrow", ".gz", ".zst")


TAKEN = {"base", "sft", "dpo", "scores", "name", "seed", "stages", "models", "servers", "variables", "domain", "work",
         "logs", "cache", "artifacts", "unfinished", "lock"}  # fmt: skip
"""Names of other parts of the recipe, and of its own words."""


@dataclass(frozen=True)
class Rows:
    """One source."""

    name: str
    """A name on the Hub, or a path."""
    rows: str
    """What to make of them: chats, pairs or feedback."""
    split: str = "train"
    weight: float = 1.0
    number: int = 1
    """Which of several that would have one name."""
    subset: Any = None
    revision: str | None = None
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    test: bool | None = None
    """Whether it is for tests; None: its split's name says so."""
    why: str = ""

    @property
    def is_test(self) -> bool:
        """Whether it is held out."""
        return (
            self.test
            if self.test is not None
            else bool(re.match(r"(test|validation|valid|eval|dev)\b|(test|eval)_", self.split))
        )

    @property
    def is_local(self) -> bool:
        """Whether it is a path on this machine."""
        there = self.name.startswith((".", "/", "~")) or self.name.endswith(FILE_ENDS)
        return there or Path(self.name).exists()

    @property
    def stage(self) -> str:
        """What its stage is called."""
        words = Path(self.name).stem if self.is_local else self.name.rpartition("/")[2]
        parts = [words, *([str(self.subset)] if self.subset else []), *([] if self.is_local else [self.split])]
        plain = re.sub(r"\W+", "_", "_".join(parts), flags=re.ASCII).strip("_").lower()[:56]
        plain += f"_{self.number}" if self.number > 1 else ""
        return f"rows_{plain}" if not plain or plain[0].isdigit() or plain in TAKEN else plain

    def reference(self) -> Any:
        """As `data` names it."""
        return self.stage if self.weight == 1 else {"from": self.stage, "weight": self.weight}


def apart(found: Sequence[Rows]) -> tuple[list[Rows], list[Rows]]:
    """What is trained on and what is held out, each under a name of its own. What stands in both is trained on: no
    model is scored on that."""
    train: list[Rows] = []
    tests: list[Rows] = []
    names: Counter[str] = Counter()
    trained = {(one.name, one.split, one.subset) for one in found if not one.is_test}
    for one in found:
        if one.is_test and (one.name, one.split, one.subset) in trained:
            continue
        names[one.stage] += 1
        (tests if one.is_test else train).append(replace(one, number=names[one.stage]))
    return train, tests


def import_stage(rows: Rows, tests: Sequence[Rows] = ()) -> Part:
    """The stage that reads them, without those that ask what a row held out for tests asks."""
    part = Part(rows.stage, above=rows.why)
    part.add("kind", "import")
    part.add("path" if rows.is_local else "hub", rows.name)
    if not rows.is_local:
        part.add("split", rows.split)
        if rows.subset:
            part.add("subset", str(rows.subset))
        if rows.revision:
            part.add("revision", rows.revision)
    part.add("rows", rows.rows)
    if rows.format != "auto":
        part.add("format", rows.format)
    if rows.columns:
        part.add("columns", dict(rows.columns))
    held = [test.stage for test in tests if test.rows in ("chats", "pairs")]
    if held and not rows.is_test:
        part.add("decontaminate", held, "nothing is scored on what it was trained on")
    if rows.rows == "pairs":
        part.add("on_bad_row", "skip", "an answer that says nothing makes no pair")
    return part


def held_out(tests: Sequence[Rows], trained: str) -> list[Part]:
    """What the rows that are held out say of the models; nothing where there are none, or they are single answers."""
    suites: dict[str, Any] = {}
    for rows in tests:
        if rows.rows == "chats":
            suites[rows.stage] = {"protocol": "answer_loss", "chats": rows.stage}
        elif rows.rows == "pairs":
            suites[rows.stage] = {"protocol": "preference", "pairs": rows.stage, "reference": "base"}
    if not suites:
        return []
    part = Part("scores", above="The splits for tests, held out: nothing is trained on them.")
    part.add("kind", "evaluate")
    part.add("models", ["base", trained])
    part.add("suites", suites)
    return [part]
