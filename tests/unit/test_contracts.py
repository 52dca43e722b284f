"""What holds for the whole house: imports point one way, no field is dead, recipes parse, the schema is current."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from pydantic import BaseModel

from potstill import sources, stages
from potstill.document import plain, read_document
from potstill.recipe import load_recipe, recipe_folder, shipped
from potstill.recipe.references import slots
from potstill.recipe.schema import recipe_schema
from potstill.records import ROWS
from potstill.reporting.told import Form, told
from potstill.stages.base import Reference, StageConfig

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "potstill"

# Imports point down this list, or stay inside one line of it.
LAYERS = [
    ["errors", "units", "environment"],
    ["records", "document", "money", "members", "questions", "validation", "hardware"],
    ["artifact"],
    ["sources"],
    ["reading", "layouts", "lineage", "cards", "prompts", "own"],
    ["tokens", "objectives"],
    ["signals", "training", "teachers", "curation", "evaluation", "reporting", "miniature", "skills", "serving"],
    ["stages"],
    ["recipe"],
    ["runs.workspace", "runs.extras"],
    ["runs.plan", "runs.made"],
    ["runs.launch", "runs.overlap", "runs.events", "runs.progress", "estimates"],
    ["runs.survey"],
    ["runs.pipeline", "runs.worker"],
    ["runs.trial"],
    ["terminal.console"],
    ["terminal", "speakers", "arena"],
    ["scoring", "terminal.score_view", "terminal.compare_view", "doctor", "shipping", "convert"],
    ["library"],
    ["view"],
    ["verbs"],
    ["cli"],
]
# What the floor holds for those above: a stage's contract knows no stage.
FLOOR = {"stages.base": 4}
# Late bindings, inside a function: rows of a file of other origin are read by the reader that knows all formats.
LATE = {("sources", "reading.formats")}
HEAVY = {"torch", "transformers", "openai", "tokenizers", "datasets", "safetensors", "starlette", "uvicorn"}
MAY_BE_HEAVY = {"training", "objectives", "signals", "tokens", "estimates", "serving"}
MAY_BE_HEAVY_FILES = {
    "teachers/local.py", "teachers/spelling.py", "stages/session.py", "stages/classroom.py", "stages/interpreters.py",
    "evaluation/harness.py",
    "shipping/adapters.py", "shipping/arches.py", "shipping/measured.py", "shipping/vocabulary.py",
    *(f"view/{name}.py" for name in ("server", "site")),
    *(f"view/sections/{name}.py" for name in ("run", "stages", "rows", "scores", "compare", "findings", "arena")),
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Every module of the package: its dotted name below potstill, its file, its syntax."""
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        yield name, path, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """What of potstill a module imports, at its top or inside functions, as dotted names below potstill."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "potstill":
            below = node.module.split(".")[1:]
            for alias in node.names:
                whole = [*below, alias.name]
                is_module = (SOURCE.joinpath(*whole)).is_dir() or (SOURCE.joinpath(*whole).with_suffix(".py")).is_file()
                yield ".".join(whole if is_module else below)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("potstill.") for alias in node.names if alias.name.startswith("potstill.")
            )


def layer(name: str) -> int:
    """How high a module stands: named itself, or with its package."""
    if name in FLOOR:
        return FLOOR[name]
    parts = name.split(".")
    found = [height for head in (".".join(parts[:2]), parts[0]) for height, names in enumerate(LAYERS) if head in names]
    assert found, f"{name} stands in no layer: add it to the list, where it belongs"
    return found[0]


def test_every_import_points_one_way():
    pairs = {(name, other) for name, _, tree in modules() if name for other in imported(tree) if other}
    assert sorted(pair for pair in pairs - LATE if layer(pair[1]) > layer(pair[0])) == []
    assert pairs >= LATE, "an exception that is none any more"


def test_sibling_stages_never_import_each_other():
    shared = {
        "stages", "stages.base", "stages.asking", "stages.auditing", "stages.classroom", "stages.conveyor",
        "stages.domain",
        "stages.forecast", "stages.interpreters", "stages.judging", "stages.kept", "stages.labelled",
        "stages.prompting", "stages.training",
        "stages.scored", "stages.session", "stages.trying", "stages.suites", "stages.suites.base",
    }  # fmt: skip
    kinds = {module.removeprefix("potstill.") for module in stages.MODULES.values()}
    wrong = [
        f"{name} imports {other}"
        for name, _, tree in modules()
        if name in kinds
        for other in imported(tree)
        if other.startswith("stages") and other not in shared
    ]
    assert wrong == []
    assert kinds <= {name for name, _, _ in modules()}


def test_no_two_packages_import_each_other():
    """Inside one layer too: evaluation may ask teachers, so no teacher knows of evaluation."""
    pairs = {(name, other) for name, _, tree in modules() if name for other in imported(tree) if other} - LATE
    heads = {(name.split(".")[0], other.split(".")[0]) for name, other in pairs if not {name, other} & set(FLOOR)}
    graph: dict[str, set[str]] = {}
    for head, other in heads:
        if head != other:
            graph.setdefault(head, set()).add(other)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            head = waiting.pop()
            if head not in seen:
                seen.add(head)
                waiting.extend(graph.get(head, ()))
        return seen

    assert [head for head in graph if head in reached(head)] == []


def test_light_modules_import_nothing_heavy_at_their_top():
    wrong = []
    for name, path, tree in modules():
        inside = path.relative_to(SOURCE).as_posix()
        if name.split(".")[0] in MAY_BE_HEAVY or inside in MAY_BE_HEAVY_FILES:
            continue
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{inside} imports {heavy}" for heavy in names if heavy.split(".")[0] in HEAVY]
    assert wrong == []


def test_the_configs_of_all_stages_load_without_torch():
    program = (
        "import sys; from potstill import stages\nfor kind in stages.MODULES: stages.stage(kind)\n"
        "print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_files_are_of_a_size_that_one_reads():
    long = {path.name: len(path.read_text().splitlines()) for _, path, _ in modules()}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_every_file_says_its_subject_first():
    assert [path.name for _, path, tree in modules() if path.stat().st_size and not ast.get_docstring(tree)] == []


# Configs.


def parts(spec: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A config and the specs inside it."""
    yield spec
    for field in spec.model_fields.values():
        yield from inner(field.annotation)


def inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from parts(annotation)
    for argument in get_args(annotation):
        yield from inner(argument)


def configs() -> list[type[BaseModel]]:
    own = [spec for spec in vars(sources).values() if isinstance(spec, type) and issubclass(spec, sources.Spec)]
    found = [part for kind in stages.MODULES for part in parts(stages.stage(kind).config)]
    return list(dict.fromkeys([*(spec for spec in own if spec.model_fields), *found]))


def test_every_field_of_every_config_is_read_somewhere():
    """As an attribute, or, for a reference, by its name through `Inputs`."""
    read: set[str] = set()
    for _, _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    dead = [
        f"{spec.__name__}.{name}"
        for spec in configs()
        for name in spec.model_fields
        if name != "kind" and name not in read
    ]
    assert dead == []


def test_every_field_of_every_config_is_explained():
    silent = [
        f"{spec.__name__}.{name}"
        for spec in configs()
        for name, field in spec.model_fields.items()
        if name not in ("kind", "protocol") and not field.description
    ]
    assert silent == []


def test_every_stage_says_its_kind_what_it_makes_and_what_it_takes():
    made = {*ROWS, "model", "signals", "scores", "trial", "audit", "report", "dataset"}
    taken = made | {"server", "file", "folder", "function", "word"}
    for kind in stages.MODULES:
        stage = stages.stage(kind)
        assert issubclass(stage.config, StageConfig)
        assert get_args(stage.config.model_fields["kind"].annotation) == (kind,)
        if isinstance(stage.produces, str):
            assert stage.produces in made
        for reference in references(stage.config):
            assert set(reference.accepts) <= taken, f"{kind} takes {reference.accepts}"


def references(spec: type[BaseModel]) -> Iterator[Reference]:
    for part in parts(spec):
        for field in part.model_fields.values():
            yield from (item for item in field.metadata if isinstance(item, Reference))
            yield from annotated(field.annotation)


def annotated(annotation: Any) -> Iterator[Reference]:
    yield from (item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Reference))
    for argument in get_args(annotation):
        if not isinstance(argument, Reference):
            yield from annotated(argument)


# Recipes and their schema.


def test_the_schema_is_current():
    assert json.loads((recipe_folder() / "schema.json").read_text()) == recipe_schema(), (
        "write it anew: python -m potstill.recipe > recipes/schema.json"
    )


def test_the_schema_is_a_schema_and_explains_every_field():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    pieces = schema["$defs"]
    silent = [
        f"{name}.{field}"
        for name, piece in pieces.items()
        for field, body in piece.get("properties", {}).items()
        if "description" not in body and field not in ("kind", "protocol")
    ]
    assert silent == []
    assert pieces["EndpointModel"]["properties"]["name"]["description"] == "The model's name as the server knows it."
    assert {"type": "number", "exclusiveMinimum": 0} in pieces["EndpointModel"]["properties"]["timeout_seconds"][
        "anyOf"
    ]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_fits_the_schema(name):
    document = read_document(shipped()[name])
    jsonschema.validate(plain(document.value), recipe_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nome": "x"}, "nome"),
        ({"models": {"m": {"path": "x", "endpoint": "y"}}}, "endpoint"),
        ({"models": {"m": {"endpoint": "y", "nam": "z"}}}, "nam"),
        ({"models": {"m": []}}, "[]"),
        ({"stages": {"a": {"kind": "words"}}}, "words"),
        ({"stages": {"a": {"kind": "miniature", "server": "w", "part": "articles", "editiens": 1}}}, "editiens"),
        ({"stages": {"a": {"kind": "miniature", "server": "w", "part": "articles", "editions": "two"}}}, "two"),
        ({"stages": {"a-b": {"kind": "miniature", "server": "w", "part": "articles"}}}, "a-b"),
    ],
)
def test_the_schema_refuses_what_the_recipe_reader_refuses(change, message):
    good = {"name": "r", "stages": {"a": {"kind": "miniature", "server": "w", "part": "articles", "editions": "${n}"}}}
    validator = jsonschema.Draft202012Validator(recipe_schema())
    assert list(validator.iter_errors(good)) == []
    errors = [leaf.message for error in validator.iter_errors({**good, **change}) for leaf in [error, *error.context]]
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_parses_and_plans(name, tmp_path):
    from potstill.runs.plan import make_plan
    from potstill.runs.workspace import Hashes, Workspace

    text = read_document(shipped()[name])
    needed = [variable for variable, value in (text.value.get("variables") or {}).items() if value is None]
    data = ROOT.parent / "shared" / "data"
    if needed and not data.is_dir():
        pytest.skip(f"{name} reads files that are not here")
    recipe = load_recipe(name, [f"{variable}={data}" for variable in needed])
    plan = make_plan(recipe, Workspace(tmp_path), Hashes(tmp_path / "hashes.json"))
    assert list(plan.steps) == list(recipe.stages)
    assert all(slot.accepts for entry in recipe.stages.values() for slot in slots(entry.config))


# What people see of scores. Trials of judges and audits have tables of their own, whose cells are pairs of a value and
# its interval.
PRINTS = ["console", "show", "views", "replies", "compare_view"]
PRINTS += ["reporting.page", "reporting.findings", "reporting.claims", "reporting.suites", "reporting.questions"]


@pytest.mark.parametrize("name", PRINTS)
def test_no_score_is_printed_without_its_interval(name):
    """Only `told` takes a mean out of an estimate; what it gives away always holds the interval too."""
    (tree,) = (tree for found, _, tree in modules() if found in {name, f"terminal.{name}"})
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Constant) and node.value == "mean" and _is_key(tree, node)), node.lineno
        assert not (isinstance(node, ast.Attribute) and node.attr in ("mean", "_mean")), node.lineno


def _is_key(tree, constant):
    """It stands in brackets or in `get`, not in a table's head."""
    keys = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return any(constant is key for key in keys) or any(
        constant is argument for call in calls if call.func.attr == "get" for argument in call.args
    )


def test_templates_have_no_mean_to_print():
    for path in (SOURCE / "reporting" / "templates").iterdir():
        assert not re.search(r"\.\s*_?mean\b|\[\s*['\"]_?mean", path.read_text(encoding="utf-8")), path.name


def test_whatever_is_told_of_an_estimate_holds_its_interval():
    """Everything public that a `Told` can be made to say with its mean in it."""
    shown = told({"mean": 6.25, "low": 5.75, "high": 6.5, "n": 160, "coverage": 0.9}, Form(2))
    alone = told({"mean": 6.25, "low": None, "high": None, "n": 1, "coverage": 1.0}, Form(2))
    for one, words in ((shown, ["5.75", "6.50"]), (alone, ["one question"])):
        said = {name: getattr(one, name) for name in dir(one) if not name.startswith("_")}
        said = {name: value("") if callable(value) else value for name, value in said.items()}
        said |= {"str": str(one), "html": one.__html__()}
        for name, value in said.items():
            if "6.25" in str(value):
                assert all(word in str(value) for word in words), name
    assert "n 160" in str(shown)
    assert "90% scored" in str(shown)
