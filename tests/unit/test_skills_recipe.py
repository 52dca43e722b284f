"""Skills in a recipe: a user's own checker and tool, named as mine.py:function, reach every stage that takes one."""

import json
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub, completion, reply

from potstill.errors import RecipeError
from potstill.recipe import load_recipe
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace

MINE = '''
def check(answer: str, reference: str) -> bool:
    return reference in answer.split()

def double(n: int) -> int:
    """Doubles a number."""
    return 2 * n
'''

RECIPE = """\
name: skills
models:
  m: {{endpoint: "{url}", name: m}}
stages:
  solved: {{kind: reason, teacher: m, data: sums.jsonl, checker: "mine.py:check", samples: 1}}
  called: {{kind: use_tools, teacher: m, prompts: sums.jsonl, tools: [calculator, "mine.py:double"], checker: number}}
  scores:
    kind: evaluate
    models: [m]
    suites:
      s: {{protocol: exact, questions: sums.jsonl, checker: "mine.py:check", tools: ["mine.py:double", calculator]}}
"""


async def doubler(stub: Stub, body: dict[str, Any], before: int) -> Any:
    """Says twice the number; where it is offered a tool for that, it calls it."""
    number = int(next(m["content"] for m in body["messages"] if m["role"] == "user").split()[1])
    results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
    if "tools" not in body:
        return reply(completion(f"That is {2 * number} ."))
    if results:
        return reply(completion(f"It is {results[0]} ."))
    wish = {"id": "w", "type": "function", "function": {"name": "double", "arguments": json.dumps({"n": number})}}
    return reply(completion(None, "tool_calls", tool_calls=[wish]))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{n}", "messages": [{"role": "user", "content": f"Double {n} please"}], "references": [str(2 * n)]}
            for n in range(4)]  # fmt: skip
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("mine.py").write_text(MINE)
    return tmp_path


def test_ones_own_checker_and_tool_reach_every_stage(here: Path) -> None:
    with Stub(fault=doubler) as stub:
        Path("r.yaml").write_text(RECIPE.format(url=stub.base_url))
        sealed = run(load_recipe("r.yaml"), here / "out")
    solved = [json.loads(line) for line in (sealed["solved"].path / "rows.jsonl").read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in solved] == [f"That is {2 * n} ." for n in range(4)]
    called = [json.loads(line) for line in (sealed["called"].path / "rows.jsonl").read_text().splitlines()]
    assert [[m["content"] for m in row["messages"][2:]] for row in called] == [
        [str(2 * n), f"It is {2 * n} ."] for n in range(4)
    ]
    assert [json.loads(tool)["function"]["name"] for tool in called[0]["tools"]] == ["calculator", "double"]
    scores = json.loads((sealed["scores"].path / "scores.json").read_text())
    assert scores["suites"]["s"]["models"]["m"]["mean"] == 1.0
    line = json.loads((sealed["scores"].path / "answers.jsonl").read_text().splitlines()[3])
    assert line["turns"][0]["judgment"] == 'right; double {"n": 3}'


def test_another_text_of_the_function_is_another_key(here: Path) -> None:
    Path("r.yaml").write_text(RECIPE.format(url="http://127.0.0.1:9/v1"))

    def keys() -> dict[str, str]:
        plan = make_plan(load_recipe("r.yaml"), Workspace(here / "w"), Hashes(here / "w" / "hashes.json"))
        return {name: step.key for name, step in plan.steps.items()}

    before = keys()
    Path("mine.py").write_text(MINE + "# longer\n")
    after = keys()
    assert all(before[name] != after[name] for name in ("solved", "called", "scores"))


def test_a_function_that_is_not_there_is_told_when_the_recipe_is_read(here: Path) -> None:
    Path("r.yaml").write_text(RECIPE.format(url="http://127.0.0.1:9/v1").replace(":double", ":treble"))
    with pytest.raises(RecipeError, match="treble"):
        make_plan(load_recipe("r.yaml"), Workspace(here / "w"), Hashes(here / "w" / "hashes.json"))
