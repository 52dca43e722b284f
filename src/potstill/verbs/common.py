"""What verbs share: how a run or a recipe is named on the command line, numbers within bounds, where words go."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.verbs import complete

HIGHEST_PORT = 65_535

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.recipe import Recipe


def completed(action: argparse.Action, completer: Callable[..., list[str]]) -> None:
    """Let shells complete this argument."""
    action.completer = completer  # type: ignore[attr-defined]  # argcomplete looks for it there


def add_run(parser: argparse.ArgumentParser) -> None:
    """RUN, as every verb on a run takes it."""
    help_text = "a run's folder; or its name or recipe: then runs/NAME"
    completed(parser.add_argument("run", metavar="RUN", help=help_text), complete.runs)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and what may be written over it, as every verb on a recipe takes them."""
    named = parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    completed(named, complete.recipes)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="written over the recipe: dpo.beta=0.05")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")
    until = parser.add_argument("--until", metavar="STAGE", help="only what this stage needs, and itself")
    completed(until, complete.stages)


def count(text: str, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"at least {least}")
    return value


def count_or_none(text: str) -> int:
    return count(text, least=0)


def port(text: str) -> int:
    number = count(text, least=0)
    if number > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{number} is no port; expected at most {HIGHEST_PORT}")
    return number


def within(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"between {low:g} and {high:g}")
        return float(text)

    return number


def console() -> "Console":
    """Standard output, as the user's environment wants it."""
    from potstill.terminal.console import screen

    return screen()


def load(args: argparse.Namespace) -> "tuple[Recipe, Path]":
    """The recipe, and its run's folder."""
    from potstill.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    return recipe, args.out or Path("runs") / recipe.name


def print_json(found: Mapping[str, Any]) -> None:
    """For programs: one object."""

    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
