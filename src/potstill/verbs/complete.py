"""What a shell may complete behind a verb: recipes, runs, stages. It reads names alone, so that it answers at once."""

import argparse
import json
from pathlib import Path
from typing import Any

import potstill

RUNS = Path("runs")


def recipes(**asked: Any) -> list[str]:
    """Shipped recipes, and the YAML files here."""
    inside = Path(potstill.__file__).parent / "recipes"  # as `recipe.recipe_folder` has it, which is slow to import
    beside = Path(potstill.__file__).parents[2] / "recipes"
    shipped = sorted((inside if inside.is_dir() else beside).glob("*.yaml"))
    return [*(path.stem for path in shipped), *map(str, Path().glob("*.yaml"))]


def runs(**asked: Any) -> list[str]:
    """The runs under runs/, by their names and as folders."""
    found = sorted(path.parent for path in RUNS.glob("*/run.json"))
    return [*(path.name for path in found), *map(str, found)]


def stages(parsed_args: argparse.Namespace, **asked: Any) -> list[str]:
    """Those of the run that the command line names; of a recipe, those of its last run."""
    name = str(getattr(parsed_args, "run", None) or getattr(parsed_args, "recipe", None) or "")
    for folder in (Path(name), RUNS / name, RUNS / Path(name).stem):
        try:
            return list(json.loads((folder / "run.json").read_bytes())["stages"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []
