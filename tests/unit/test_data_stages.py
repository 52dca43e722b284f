"""From seeds to pairs against the miniature's server: every stage for real, and the same bytes twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, make

from potstill.miniature.server import MiniatureProcess
from potstill.sources import Inputs, MiniatureServer
from potstill.stages import stage
from potstill.stages.base import Work

WORLD = MiniatureServer(kind="miniature")
POOL = ("scribe", "sage", "hedger", "forger", "mumbler", "rambler")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with MiniatureProcess(WORLD, tmp_path_factory.mktemp("server") / "log") as server:
        yield server.base_url


def part(folder: Path, name: str) -> Made:
    """A part of the miniature's world."""
    kind, path = stage("miniature"), folder / name
    path.mkdir()
    config = kind.config.model_validate({"kind": "miniature", "server": "world", "part": name})
    facts = kind.run(config, Inputs({}, {}, {"server": WORLD}), Work(path, folder, 1))
    return Made(facts, path, kind.output(config))


def chain(folder: Path, url: str) -> dict[str, Made]:
    """Every data stage of the miniature recipe, small."""
    folder.mkdir()
    made = {name: part(folder, name) for name in ("seeds", "questions")}

    def run(name: str, models: Any = None, data: dict[str, Any] | None = None, **config: Any) -> None:
        given = {field: [made[n].data for n in names] for field, names in (data or {}).items()}
        fields = {field: names[0] if field != "decontaminate" else names for field, names in (data or {}).items()}
        asked = {field: [endpoint(url, n) for n in names] for field, names in (models or {}).items()}
        fields |= {field: names[0] if len(names) == 1 else names for field, names in (models or {}).items()}
        made[name] = make(folder, {**config, **fields}, given, asked)

    teacher = {"teacher": ("scribe",)}
    run("prompts", teacher, {"seeds": ["seeds"]}, kind="self_instruct", count=40, novelty=0.95)
    run("chats", teacher, {"prompts": ["prompts"]}, kind="converse", turns=[2, 2])
    data = {"data": ["chats"], "decontaminate": ["questions"]}
    run("curated", None, data, kind="curate", truecase=True, deduplicate=0.9)
    run("answers", {"models": POOL}, {"prompts": ["curated"]}, kind="sample")
    run("rated", {"judge": ("judge",)}, {"data": ["answers"]}, kind="judge")
    run("pairs", None, {"data": ["rated"]}, kind="binarize")
    return made


def test_from_seeds_to_pairs_twice(tmp_path: Path, url: str) -> None:
    one, other = chain(tmp_path / "one", url), chain(tmp_path / "other", url)
    for name, made in one.items():
        assert made.files == other[name].files, name
        assert made.facts == other[name].facts, name
    assert one["prompts"].facts["rows"] == one["chats"].facts["rows"] == 40
    assert one["rated"].facts["coverage"] == 1
    assert one["curated"].facts["dropped"]["hedge"] > 0, "the teacher hedges now and then"
    for rows in ("prompts", "chats", "curated", "answers", "rated", "pairs"):
        ids = [row.id for row in one[rows].rows]
        assert len(set(ids)) == len(ids) == one[rows].facts["rows"]
    kept, dropped = one["curated"].facts["rows"], sum(one["curated"].facts["dropped"].values())
    assert kept + dropped == 40
    pairs = one["pairs"]
    assert pairs.facts["rows"] + sum(pairs.facts["dropped"].values()) == one["rated"].facts["rows"]
    assert all(pair.chosen_score > pair.rejected_score for pair in pairs.rows)
    chosen = pairs.facts["chosen_models"]
    assert max(chosen, key=chosen.get) == "sage", "the better model is preferred most"
