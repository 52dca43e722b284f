"""Every stage that writes prompts or dialogues, for real against the miniature's server: what comes of it, twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, endpoint, given, make, user

from potstill.artifact import ROWS_FILE, read_rows
from potstill.miniature.reading import understand
from potstill.miniature.server import MiniatureProcess
from potstill.miniature.tasks import Compare
from potstill.miniature.world import world
from potstill.recipe import load_recipe
from potstill.records import Chat, Prompt, Text
from potstill.runs.pipeline import run
from potstill.sources import Inputs, MiniatureServer
from potstill.stages import stage
from potstill.stages.base import Work
from potstill.tokens.tokenization import DEFAULT_TEMPLATE

WORLD = MiniatureServer(kind="miniature")
KNOWN = world(WORLD.seed, WORLD.entities)
NATURE = {
    "name": "nature",
    "topics": {"mineral": ["colour", "use"], "plant": []},
    "personas": ["a miner who has found something"],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with MiniatureProcess(WORLD, tmp_path_factory.mktemp("server") / "log") as server:
        yield server.base_url


def twice(tmp_path: Path, url: str, data: dict[str, tuple[str, list[Any]]] | None = None, **config: Any) -> Made:
    """What a stage makes; made anew elsewhere, it is the same to the byte."""
    made = []
    for place in ("one", "other"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        rows = {field: given(folder, kind, rows, f"in-{field}") for field, (kind, rows) in (data or {}).items()}
        fields = dict.fromkeys(rows, "given")
        made.append(make(folder, {"teacher": "m", **fields, **config}, rows, {"teacher": endpoint(url, "sage")}))
    assert made[0].files == made[1].files
    assert made[0].facts == made[1].facts
    assert made[0].facts["rows"] == len(made[0].rows)
    assert sum(made[0].facts["dropped"].values()) == len(made[0].dropped)
    assert len({row.id for row in made[0].rows}) == len(made[0].rows)
    return made[0]


def asks(made: Made) -> list[Any]:
    return [understand(KNOWN, [row.messages[-1].content]) for row in made.rows]


def test_topics_of_a_domain(tmp_path: Path, url: str) -> None:
    made = twice(
        tmp_path, url, kind="topics", domain=NATURE, branching=[9, 3], entities=2, personas=2, askers=2, questions=3
    )
    assert (made.facts["topics"], made.facts["parts"], made.facts["entities"]) == (2, 5, 10)
    assert made.facts["personas"] == 5, "two invented for each topic, and the domain's own"
    assert {row.category for row in made.rows} == {"mineral", "plant"}
    assert all(row.persona for row in made.rows)
    found = asks(made)
    assert all(found)
    sorts = {ask.task.entity.sort for ask, row in zip(found, made.rows, strict=True) if row.category == "plant"}
    assert "plant" in sorts


def test_topics_of_the_world(tmp_path: Path, url: str) -> None:
    made = twice(tmp_path, url, kind="topics", branching=[6, 2], questions=2)
    assert made.facts["topics"] == 6
    assert made.facts["rows"] > 10
    assert not any(row.persona for row in made.rows)


def test_creation(tmp_path: Path, url: str) -> None:
    made = twice(
        tmp_path,
        url,
        kind="creation",
        texts=["a note", "a poem"],
        per_text=10,
        per_request=5,
        novelty=0.95,
        detailed=0.5,
    )
    texts = [row.messages[0].content for row in made.rows]
    assert {row.category for row in made.rows} == {"a note", "a poem"}
    assert 0 < made.facts["detailed"] < len(texts)
    assert all(text.startswith("Write ") for text in texts)


def test_material(tmp_path: Path, url: str) -> None:
    named = [entity.name for entity in KNOWN.entities[:6]]
    texts = [Text(id=f"t{i}", text=f"All that is told of {name} stands here.") for i, name in enumerate(named)]
    texts.append(Text(id="long", text="word " * 200))
    made = twice(tmp_path, url, {"texts": ("texts", texts)}, kind="material", min_characters=10, max_characters=100)
    assert made.facts["dropped"]["text_too_long"] == 1
    for row in made.rows:
        text = next(text.text for text in texts if row.id.startswith(f"{text.id}-"))
        assert text in row.messages[0].content
        assert row.messages[0].content != text
    assert len({row.messages[0].content.startswith("All that") for row in made.rows}) == 2, "either may come first"


def test_magpie(tmp_path: Path, url: str) -> None:
    made = twice(tmp_path, url, kind="magpie", count=30, opening="<s><|user|>\n")
    assert made.facts["rows"] == 30
    assert made.facts["short_by"] == 0
    assert made.facts["requests"] == 30 + sum(made.facts["dropped"].values())
    assert all(asks(made))
    assert "<|user|>" not in DEFAULT_TEMPLATE, "it is made there"


def test_evolve(tmp_path: Path, url: str) -> None:
    seeds = make_seeds(tmp_path)
    made = twice(tmp_path, url, {"prompts": ("prompts", seeds)}, kind="evolve", generations=3)
    originals = {seed.id for seed in seeds}
    evolved = [row for row in made.rows if row.id not in originals]
    assert made.facts["rows"] == len(originals) + len(evolved)
    assert len(evolved) > 10
    assert sum(count["kept"] for count in made.facts["operations"].values()) == len(evolved)
    asked = sum(count["asked"] for count in made.facts["operations"].values())
    assert asked == 3 * len(seeds) == len(evolved) + len(made.dropped)
    assert made.facts["dropped"]["unchanged"] > 0, "it cannot wish for two forms at once"
    assert all(asks(made))
    for row in evolved:
        first = next(seed for seed in seeds if row.id.startswith(f"{seed.id}+"))
        assert row.category == first.category


def make_seeds(folder: Path) -> list[Prompt]:
    kind, path = stage("miniature"), folder / "seeds"
    path.mkdir()
    config = kind.config.model_validate({"kind": "miniature", "server": "w", "part": "seeds", "per_category": 3})
    kind.run(config, Inputs({}, {}, {"server": WORLD}), Work(path, folder, 1))
    return Made({}, path, "prompts").rows


def test_self_instruct_in_either_order(tmp_path: Path, url: str) -> None:
    seeds = {"seeds": ("prompts", make_seeds(tmp_path))}
    made = twice(tmp_path, url, seeds, kind="self_instruct", count=40, novelty=0.95, instances="by_kind")
    assert made.facts["tasks"] == 40
    assert made.facts["orders"]["input_first"] + made.facts["orders"]["label_first"] == 40
    by_task: dict[str, list[Any]] = {}
    for chat in made.rows:
        by_task.setdefault(chat.id.rpartition("-")[0], []).append(chat)
    choosing = [chats for chats in by_task.values() if len(chats) > 1]
    assert choosing, "a label for each of several inputs"
    for chats in choosing:
        assert len({chat.messages[0].content for chat in chats}) == len(chats)
        for chat in chats:
            task, given = chat.messages[0].content.split("\n\n")
            asked = understand(KNOWN, [task])
            told = understand(KNOWN, [f"{given} Who is the {asked.task.asked}?"])
            assert isinstance(told.task, Compare)
            assert chat.messages[1].content == told.task.short(), "the label is that of its input"


def test_a_dialogue_about_every_kind_of_prompt(tmp_path: Path, url: str) -> None:
    prompts = [
        Prompt(id=f"p{i}", messages=user(f"What is the {entity.facts[0][0]} of {entity.name}?"), persona="a miner")
        for i, entity in enumerate(KNOWN.entities[:20])
    ]
    made = twice(tmp_path, url, {"prompts": ("prompts", prompts)}, kind="converse", turns=[2, 4], domain=NATURE)
    assert made.facts["rows"] >= 15
    assert set(made.facts["assistant_turns"]) <= {"2", "3", "4"}
    assert set(made.facts["answers"]) == {"stop"}


def test_the_shipped_recipe_for_a_field_makes_its_data(tmp_path: Path, url: str) -> None:
    """Its prompts, dialogues and curation for real, small; what it would teach is only planned elsewhere."""
    small = [
        f"endpoint={url}", "served_as=sage", "asked.branching=[5, 1]", "asked.askers=1", "asked.questions=3",
        "asked.novelty=null", "held_out.branching=[5, 1]", "held_out.questions=1", "held_out.novelty=null",
        "harder.generations=1", "talks.turns=[2, 2]", "curated_talks.deduplicate=null",
    ]  # fmt: skip
    sealed = run(load_recipe("domain", small), tmp_path, until="curated_talks")
    facts = {name: artifact.facts for name, artifact in sealed.items()}
    assert set(facts) == {"asked", "harder", "held_out", "talks", "curated_talks"}
    assert facts["asked"]["topics"] == 5
    assert facts["asked"]["personas"] >= 5
    assert facts["harder"]["rows"] > facts["asked"]["rows"]
    assert facts["talks"]["rows"] > 20
    systems = {chat.messages[0].content for chat in read_rows(sealed["talks"].path / ROWS_FILE, Chat)}
    assert systems == {load_recipe("domain").stages["talks"].config.domain.system}  # type: ignore[attr-defined]
