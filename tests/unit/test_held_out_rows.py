"""The recipe on real input, as far as seconds reach: nothing that is trained on repeats what is held out.

That it parses and plans is tested for every recipe at once, in `test_contracts`; that it runs, and what it shows, in
`tests/end_to_end`.
"""

import re
from pathlib import Path

import pytest

from potstill.artifact import ROWS_FILE, Artifact, read_rows
from potstill.recipe import load_recipe
from potstill.records import ROWS, Message
from potstill.runs.pipeline import run

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, which holds the real rows, is not here")


def prompts(artifact: Artifact, kind: str) -> list[str]:
    """What each row's user says up to the first answer, without case and punctuation."""
    found = []
    for row in read_rows(artifact.path / ROWS_FILE, ROWS[kind]):
        messages: tuple[Message, ...] = getattr(row, "messages" if kind == "chats" else "prompt")
        opening = next(message.content for message in messages if message.role == "user")
        found.append(" ".join(re.findall(r"\w+", opening.lower())))
    return found


def test_no_training_row_begins_with_a_prompt_that_is_held_out(tmp_path: Path) -> None:
    recipe = load_recipe("real-preferences", [f"data={DATA}"])
    imports = {name: entry for name, entry in recipe.stages.items() if entry.produces in ("chats", "pairs")}
    sealed: dict[str, Artifact] = {}
    for name in imports:
        sealed |= run(recipe, tmp_path, until=name)
    said = {name: prompts(sealed[name], entry.produces) for name, entry in imports.items()}
    held_out = {name for name in said if name.endswith("_held_out")}
    train = said.keys() - held_out
    kept_out = {prompt for name in held_out for prompt in said[name]}
    for name in train:
        assert kept_out.isdisjoint(said[name]), name
    files: dict[str, list[str]] = {}
    for name, entry in imports.items():
        files.setdefault(str(entry.config.model_dump()["path"]), []).append(name)
    for path, (one, other) in files.items():
        assert {one in held_out, other in held_out} == {True, False}, f"{path} has a part on each side"
        assert len(said[one]) > 50
        assert len(said[other]) > 50


def test_the_models_learn_from_the_training_rows_alone() -> None:
    recipe = load_recipe("real-preferences", [f"data={DATA}"])
    for name, entry in recipe.stages.items():
        if entry.stage.trains:
            assert not any(read.endswith("_held_out") for read in entry.reads), name
