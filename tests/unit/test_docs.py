"""The documentation: what is generated is current, links lead somewhere, commands and recipes are real."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from potstill import cli, stages
from potstill.evaluation.leaderboard import V1
from potstill.layouts import layout_of
from potstill.recipe import load_recipe
from potstill.records import ROWS
from potstill.runs.pipeline import run
from potstill.runs.plan import make_plan
from potstill.runs.workspace import Hashes, Workspace
from potstill.stages.judging import Bar

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe.md", "data.md", "miniature.md", "synthesis.md", "audits.md"])
def test_what_is_generated_is_current(name):
    assert (ROOT / "docs" / name).read_text() == generator().generated(name), "write it anew: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_that_is_understood(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        if words[0] == "potstill" and words[1:] != ["--help"]:
            parsed = cli._arguments(words[1:])  # exits where it is not understood
            if getattr(parsed, "recipe", "") == "miniature":
                load_recipe(parsed.recipe, parsed.overrides)


def test_the_readmes_recipe_is_one(tmp_path):
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "Name a colour."}\n')
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Name a river."}\n')
    for number, block in enumerate(blocks):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        assert "dpo" in load_recipe(str(file)).stages


def test_the_two_commands_stand_at_the_top_of_the_readme():
    assert commands(ROOT / "README.md")[:2] == ["make demo", "make test"]
    assert (ROOT / "README.md").read_text().index("make demo") < 500


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    verbs = [name for action in cli._parser()._actions for name in (action.choices or ())]
    assert len(verbs) >= 5
    assert [verb for verb in verbs if f"`potstill {verb}" not in readme] == []


def test_the_recipes_on_feedback_fit_together(tmp_path):
    """The snippets of that page are stages of one recipe."""
    page = (ROOT / "docs" / "feedback.md").read_text()
    snippets = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a colour."}\n')
    models = "".join(
        f"  {name}: {{endpoint: 'http://localhost:1/v1', name: {name}}}\n" for name in ("strong", "cheap", "other")
    )
    pool = ", ".join(f"{{endpoint: 'http://localhost:1/v1', name: {name}}}" for name in ("small", "b", "c", "d"))
    head = f"name: feedback\nmodels:\n{models}  pool: [{pool}]\nstages:\n"
    own = "  prompts: {kind: import, path: prompts.jsonl, rows: prompts}\n"
    (tmp_path / "feedback.yaml").write_text(head + own + "".join(snippets))
    stages = load_recipe(str(tmp_path / "feedback.yaml")).stages
    assert {"answers", "rated", "reviewed", "compared", "pairs"} <= set(stages)


def test_the_recipe_on_judges_on_trial_is_whole(tmp_path):
    """It can be planned: its trials measure what its bar is set on."""
    page = (ROOT / "docs" / "judges.md").read_text()
    (snippet, *_) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "labelled.jsonl").write_text('{"prompt": "Q", "chosen": "A", "rejected": "B"}\n')
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Name a colour."}\n')
    models = "".join(
        f"  {name}: {{endpoint: 'http://localhost:1/v1', name: {name}}}\n"
        for name in ("strong", "cheap", "base", "sft", "dpo")
    )
    own = "  questions: {kind: import, path: questions.jsonl, rows: prompts}\n"
    (tmp_path / "tried.yaml").write_text(f"name: tried\nmodels:\n{models}stages:\n{own}{snippet}")
    recipe = load_recipe(str(tmp_path / "tried.yaml"))
    steps = make_plan(recipe, Workspace(tmp_path / "out"), Hashes(tmp_path / "hashes.json")).steps
    assert list(steps) == ["questions", "graded", "compared", "scores", "report"]
    named = re.findall(r"`([a-z_]+)`", page.partition("**The bar**")[2].partition("`trust:")[0])
    assert set(Bar.model_fields) - {"agreement_where_decided"} <= set(named), "every field of the bar is explained"


def test_the_recipes_on_distillation_fit_together(tmp_path):
    """The first is whole, the others are stages of it."""
    page = (ROOT / "docs" / "distillation.md").read_text()
    whole, *stages = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "Q"}]}\n')
    text = whole.replace("models:\n", "models:\n  sft: {path: my-sft}\n") + "".join(stages)
    (tmp_path / "distilled.yaml").write_text(text)
    kinds = [stage.config.kind for stage in load_recipe(str(tmp_path / "distilled.yaml")).stages.values()]
    assert sorted(kinds) == ["capture", "distill", "distill", "distill", "import", "init", "init"]


def blocks(page: Path) -> dict[str, str]:
    """The files that a page shows: those blocks that begin with their names."""
    found = re.findall(r"^```\w+\n# file: (\S+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found)
    return dict(found)


def test_the_leaderboards_recipe_is_one(tmp_path):
    (tmp_path / "leaderboard.yaml").write_text(blocks(ROOT / "docs" / "leaderboard.md")["leaderboard.yaml"])
    for task in ("arc", "hellaswag", "mmlu"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
    (tmp_path / "tasks" / "truthful.jsonl").write_text("{}\n")
    (suite,) = load_recipe(str(tmp_path / "leaderboard.yaml")).stages["scores"].config.suites.values()
    assert (suite.tasks, set(suite.files)) == (tuple(V1), set(V1))


def test_what_is_said_of_the_leaderboard_is_what_is_asked():
    """The table of its tasks has the shots and metrics that the code has."""
    table = (ROOT / "docs" / "leaderboard.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*) \|$", table, re.MULTILINE)
    assert [(task, int(shots)) for task, shots, _ in rows] == [(task, one.shots) for task, one in V1.items()]
    told = {task: re.findall(r"`(acc\w*)`", text) for task, _, text in rows}
    assert told == {task: [one.metric] if task != "truthfulqa_mc2" else [] for task, one in V1.items()}


EXAMPLES = {
    "filter": ("curated", 2, {"long_enough": 1}),
    "prompt": ("chats", 3, {}),
    "stage": ("loud", 2, {"short": 1}),
    "ask": ("chats", 3, {}),
}
NEEDS = {"filter": ("curate", "filters"), "prompt": ("converse", "prompt_files")}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_the_examples_of_own_functions_run(name, tmp_path, monkeypatch):
    files = blocks(ROOT / "docs" / "extending.md")
    assert {f"{example}.yaml" for example in EXAMPLES} == {file for file in files if file.endswith(".yaml")}
    if name in NEEDS and NEEDS[name][1] not in stages.stage(NEEDS[name][0]).config.model_fields:
        pytest.skip(f"{NEEDS[name][0]} has no {NEEDS[name][1]}")
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    stage, rows, dropped = EXAMPLES[name]
    facts = run(load_recipe(f"{name}.yaml"), tmp_path / "out")[stage].facts
    assert (facts["rows"], facts["dropped"]) == (rows, dropped)


def test_what_is_said_of_columns_is_what_is_written():
    """The table of what `export` writes names every column, and none besides."""
    table = (ROOT / "docs" / "data.md").read_text().partition("## What is written")[2]
    for kind, row_type in ROWS.items():
        (line,) = [line for line in table.splitlines() if line.startswith("|") and f"`{kind}`" in line.split("|")[1]]
        assert set(re.findall(r"`(\w+)`", line.split("|")[2])) == set(layout_of(row_type)), kind
