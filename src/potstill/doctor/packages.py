"""The packages: Python, what potstill needs, and what its optional parts need, against the ranges that it asks for."""

import shutil
import sys
from collections.abc import Iterator
from importlib import metadata, util

from packaging.requirements import Requirement

from potstill import __version__
from potstill.doctor.findings import Finding, note, ok, problem
from potstill.recipe import Recipe
from potstill.runs.extras import missing, what_is_missing

LEAST_PYTHON = (3, 11)
FOR = {
    "hub": "reading data sets of the Hub, and Parquet",
    "ray": "curation on several machines",
    "qlora": "4-bit adapters and quantize",
    "scale": "sharding: zero3",
    "leaderboard": "protocol: leaderboard",
}
"""What an extra is for. Others, such as dev, are for who changes potstill."""


def look() -> Iterator[Finding]:
    """Without importing any of them."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        yield problem("python", f"{version}; expected 3.11 or later", "Install potstill with a later Python")
    else:
        yield ok("python", version)
    yield ok("potstill", __version__)
    try:
        asked = [Requirement(line) for line in metadata.requires("potstill") or ()]
    except metadata.PackageNotFoundError:
        yield note("packages", "potstill is not installed, so what it asks for is not known", "Run pip install .")
        return
    yield from _needed([one for one in asked if one.marker is None])
    for extra, purpose in FOR.items():
        parts = [one for one in asked if one.marker and one.marker.evaluate({"extra": extra})
                 and not one.marker.evaluate({"extra": ""})]  # fmt: skip
        yield from (_optional(one, extra, purpose) for one in parts)
    yield _found("vllm", "serve with vLLM's engine", "transformers serves without it")
    yield _llama()


def look_for(recipe: Recipe) -> Iterator[Finding]:
    """What a recipe needs beside, where it is not here."""
    needed = {extra: name for name, entry in recipe.stages.items() for extra in missing(entry.config)}
    for extra, stage in needed.items():
        what, remedy = what_is_missing(extra)
        yield problem(f"stage {stage}", f"it needs {what}", remedy)


def _needed(asked: list[Requirement]) -> Iterator[Finding]:
    fine = []
    for one in asked:
        there = _version(one.name)
        if there is None:
            yield problem(one.name, "it is not installed", f"Run pip install '{one.name}{one.specifier}'")
        elif not one.specifier.contains(there, prereleases=True):
            remedy = f"Run pip install '{one.name}{one.specifier}'"
            yield problem(one.name, f"{there} is here; expected {one.specifier}", remedy)
        else:
            fine.append(f"{one.name} {there}")
    if fine:
        yield ok("packages", ", ".join(fine))


def _optional(one: Requirement, extra: str, purpose: str) -> Finding:
    there = _version(one.name)
    if there is None:
        return note(one.name, f"not here; it is for {purpose}", f"pip install 'potstill[{extra}]'")
    if not one.specifier.contains(there, prereleases=True):
        remedy = f"Run pip install 'potstill[{extra}]'"
        return problem(one.name, f"{there} is here; expected {one.specifier}, for {purpose}", remedy)
    return ok(one.name, f"{there}, for {purpose}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _found(name: str, purpose: str, without: str) -> Finding:
    there = _version(name) if util.find_spec(name) else None
    return ok(name, f"{there}, to {purpose}") if there else note(name, f"not here; {without}")


def _llama() -> Finding:
    programs = [name for name in ("llama-server", "llama-cli", "llama-quantize") if shutil.which(name)]
    if programs:
        return ok("llama.cpp", f"{', '.join(programs)} on the path")
    return note("llama.cpp", "none of its programs is on the path; they run GGUF files")
