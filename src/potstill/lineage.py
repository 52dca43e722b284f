"""Where a sealed artifact comes from: the manifests of all stages before it, found by name and key in the run's folder.

What they hold is no secret: names and revisions of models, hashes of files, what was left out and why.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.artifact import Artifact, find
from potstill.errors import StorageError
from potstill.members import read_member

KEY_LENGTH = 12
"""How much of a key stands in the name of an artifact's folder."""


@dataclass(frozen=True)
class Asked:
    """A model that a stage read."""

    name: str
    """As the recipe calls it."""
    spec: Mapping[str, Any]
    """What its server calls it, or the name of its weights; its revision, and whether it stands behind an endpoint."""
    stages: tuple[str, ...]


def ancestry(folders: Iterable[Path]) -> list[Artifact]:
    """These artifacts and all that they were made from, each once, what is read before what reads it."""
    order: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key in order:
            return
        for source in _sources(artifact):
            before = find(artifact.path.parent / folder_name(source["name"], source["key"]))
            if before is not None and before.key == source["key"]:
                visit(before)
        order[artifact.key] = artifact

    for folder in folders:
        artifact = find(folder.resolve())
        if artifact is None:
            raise StorageError(str(folder), "this is no sealed artifact", "Run its stage again")
        visit(artifact)
    return list(order.values())


def folder_name(stage: str, key: str) -> str:
    """What the artifact's folder of a stage, or of a member of a family, is called."""
    return f"{read_member(stage).family}-{key[:KEY_LENGTH]}"


def _sources(artifact: Artifact) -> Iterator[Mapping[str, Any]]:
    for group in artifact.manifest["inputs"].values():
        yield from group


def models(artifacts: Iterable[Artifact]) -> list[Asked]:
    """The models that these stages were told to ask or to start from."""
    found: dict[tuple[str, str], tuple[Mapping[str, Any], list[str]]] = {}
    for artifact in artifacts:
        for source in _sources(artifact):
            if "model" in source:
                _, stages = found.setdefault((source["name"], source["key"]), (source["model"], []))
                stages.append(str(artifact.manifest["stage"]))
    return [Asked(name, spec, tuple(dict.fromkeys(stages))) for (name, _), (spec, stages) in found.items()]


def files(artifacts: Sequence[Artifact]) -> list[tuple[str, str, str, str]]:
    """(stage, field, name, SHA-256) of what was read from outside: rows, prompts, functions."""
    known = {artifact.key for artifact in artifacts}
    return [
        (str(artifact.manifest["stage"]), field, source["name"], source["key"])
        for artifact in artifacts
        for field, group in artifact.manifest["inputs"].items()
        for source in group
        if source["key"] not in known and "model" not in source
    ]
