"""What stands behind a model: the rows that it and its ancestors learnt from, and what those were made of."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from potstill.artifact import ROWS_FILE, Artifact, read_rows
from potstill.evaluation.audits.contamination import Lineage, Reading
from potstill.lineage import ancestry
from potstill.records import ROWS, Chat, Pair, Record, Text
from potstill.sources import Data

LEARNT_AS: dict[str, type[Record]] = {"pretrain": Text, "dpo": Pair}
"""What a stage that learns reads from a file; conversations where it is none of these."""
HELD_AGAINST = ("decontaminate",)
"""Fields whose rows are only compared with: nothing is made of them."""


def lineage(model: Artifact, files: Sequence[Data] = ()) -> Lineage:
    """What a sealed model learnt from, and how to read it.

    `files`: those that a stage learns from as they lie, which the lineage knows by name and hash alone; one that is not
    among them is told as unread.
    """
    every = ancestry([model.path])
    by_key = {artifact.key: artifact for artifact in every}
    learnt: dict[str, list[str]] = {}
    readings: dict[str, Reading] = {}
    unread: list[str] = []
    for learner in every:
        for source in _learnt(learner, by_key):
            reading = _reading(source, learner, by_key, files)
            if reading is None:
                unread.append(source["name"])
            else:
                readings[source["key"]] = reading
                learnt.setdefault(source["key"], []).append(str(learner.manifest["stage"]))
        if learner.produces == "model":
            unread += [f"what {source['name']} was made from" for source in learner.manifest["inputs"].get("model", ())
                       if source["key"] not in by_key]  # fmt: skip
    behind = {key: _behind(key, by_key) for key in learnt if key in by_key}
    for one in (by_key[key] for earlier in behind.values() for key in earlier):
        readings.setdefault(one.key, _sealed(one))
    return Lineage(
        {key: tuple(dict.fromkeys(stages)) for key, stages in learnt.items()},
        behind,
        readings,
        tuple(dict.fromkeys(unread)),
    )


def _learnt(learner: Artifact, by_key: Mapping[str, Artifact]) -> Iterator[Mapping[str, str]]:
    """The rows that a stage learns from, or captures a teacher on: sealed ones in any field, files in `data`."""
    for field, group in learner.manifest["inputs"].items() if learner.produces in ("model", "signals") else ():
        for source in group:
            known = by_key.get(source["key"])
            if (known is not None and known.produces in ROWS) or (known is None and field == "data"):
                yield source


def _reading(
    source: Mapping[str, str], learner: Artifact, by_key: Mapping[str, Artifact], files: Sequence[Data]
) -> Reading | None:
    if source["key"] in by_key:
        return _sealed(by_key[source["key"]])
    file = next((file for file in files if file.name == source["name"]), None)
    row_type = LEARNT_AS.get(str(learner.manifest["kind"]), Chat)
    return None if file is None else Reading(file.name, partial(file.rows, row_type))


def _behind(key: str, by_key: Mapping[str, Artifact]) -> tuple[str, ...]:
    """The rows that these rows were made from, the earliest first."""
    found: dict[str, None] = {}

    def visit(artifact: Artifact) -> None:
        for field, group in artifact.manifest["inputs"].items():
            for source in group if field not in HELD_AGAINST else ():
                if source["key"] in by_key and source["key"] not in found:
                    visit(by_key[source["key"]])
                    found[source["key"]] = None

    visit(by_key[key])
    return tuple(one for one in found if by_key[one].produces in ROWS)


def _sealed(artifact: Artifact) -> Reading:
    rows = partial(read_rows, artifact.path / ROWS_FILE, ROWS[artifact.produces])
    return Reading(str(artifact.manifest["stage"]), rows)
