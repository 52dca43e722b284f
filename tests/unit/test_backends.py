"""Curation over a Ray cluster of two nodes leaves the very bytes that one process leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_stages import Made, given, make, user
from test_curation import chat, corpus

from potstill.curation import backends, examine
from potstill.errors import DataError, RecipeError
from potstill.records import Chat, Prompt
from potstill.sources import Function

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray warns of its own settings

FIELDS: dict[str, Any] = {
    "kind": "curate",
    "data": "chats",
    "truecase": True,
    "deduplicate": 0.7,
    "decontaminate": "questions",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'potstill[ray]'")
    pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'potstill[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield ray
    ray.shutdown()
    made.shutdown()


def chats() -> list[Chat]:
    """Sound ones, and some for each reason to go, in several spans."""
    texts = corpus(300)
    made = [chat(f"c{i}", f"Question {i % 9}?", f"{text} Number {i % 60}.") for i, text in enumerate(texts)]
    made[10] = chat("hedge", "What do you like?", "As an AI language model, I do not have opinions.")
    made[110] = chat("refusal", "Question?", "I'm sorry, but I can't help with that.")
    made[111] = chat("contaminated", "What is the price of Borva?", "It is nine.")
    made[250] = chat("broken", "Question 0?", texts[0].lower())
    made[299] = chat("copy", *(message.content for message in made[3].messages))
    return made


def curated(folder: Path, backend: str) -> Made:
    folder.mkdir()
    data = {
        "data": given(folder, "chats", chats(), "chats"),
        "decontaminate": given(folder, "prompts", [Prompt(id="p", messages=user("What is the price of Borva?"))], "q"),
    }
    mine = folder / "mine.py"
    mine.write_text("def sixtieth(chat):\n    return 'says 59' if 'Number 59' in chat.messages[-1].content else None\n")
    config = {**FIELDS, "backend": backend, "filters": ["mine.py:sixtieth"]}
    return make(folder, config, data, functions={"filters": (Function(mine, "sixtieth"),)})


def test_a_cluster_of_two_nodes_leaves_the_same_bytes(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine.spans, "__defaults__", (20,))
    assert len([node for node in cluster.nodes() if node["Alive"]]) == 2
    one, two = curated(tmp_path / "local", "local"), curated(tmp_path / "ray", "ray")
    assert two.files == one.files
    assert two.facts == one.facts
    assert {"hedge", "refusal", "contaminated", "sixtieth", "duplicate", "near_duplicate"} <= one.facts[
        "dropped"
    ].keys()


def test_an_error_on_a_node_is_the_same_line(tmp_path: Path, cluster: Any) -> None:
    data = given(tmp_path, "chats", chats(), "chats")
    path = data.path / "rows.jsonl"
    path.write_text(path.read_text().replace('"role":"user"', '"role":"nobody"', 1))
    said = []
    for backend in ("local", "ray"):
        with pytest.raises(DataError, match=r"rows.jsonl:1: not a Chat") as caught:
            make(tmp_path, {"kind": "curate", "data": "chats", "backend": backend}, {"data": data})
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_without_ray_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(backends, "import_module", missing)
    data = given(tmp_path, "chats", chats(), "chats")
    with pytest.raises(RecipeError, match=r"backend: ray needs Ray Data.*pip install 'potstill\[ray\]'"):
        make(tmp_path, {"kind": "curate", "data": "chats", "backend": "ray"}, {"data": data})
