"""What verbs share: how a run or a recipe is named on the command line, numbers within bounds, where words go."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.recipe import Recipe


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN, as every verb on a run takes it."""
    parser.add_argument("run", metavar="RUN", help="a run's folder; or its name or recipe: then runs/NAME")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and what may be written over it, as every verb on a recipe takes them."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="written over the recipe: dpo.beta=0.05")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")
    parser.add_argument("--until", metavar="STAGE", help="only what this stage needs, and itself")


def count(text: str, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"at least {least}")
    return value


def count_or_none(text: str) -> int:
    return count(text, least=0)


def within(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"between {low:g} and {high:g}")
        return float(text)

    return number


def console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def load(args: argparse.Namespace) -> "tuple[Recipe, Path]":
    """The recipe, and its run's folder."""
    from potstill.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    return recipe, args.out or Path("runs") / recipe.name


def print_json(found: Mapping[str, Any]) -> None:
    """For programs: one object."""

    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
