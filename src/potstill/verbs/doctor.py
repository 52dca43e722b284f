"""`potstill doctor`: whether this machine, its packages and a recipe's endpoints can do what they are to do."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.verbs import common

if TYPE_CHECKING:
    from potstill.doctor.findings import Finding

HELP = "look at packages, GPUs, memory, disk and a recipe's endpoints; exit code 2 where something will fail"
STYLES = {"ok": "green", "note": "cyan", "problem": "red"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="look at its models and endpoints too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="written over the recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where runs go (default: runs)")
    parser.add_argument("--quick", action="store_true", help="leave out what needs torch")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def main(args: argparse.Namespace) -> int:
    from potstill.doctor.findings import to_json

    found = list(_findings(args))
    if args.json:
        common.print_json(to_json(found))
    else:
        _print(found)
    return 2 if any(one.state == "problem" for one in found) else 0


def _findings(args: argparse.Namespace) -> "list[Finding]":
    from potstill.doctor import machine, packages
    from potstill.doctor.findings import ok, problem
    from potstill.errors import PotstillError

    found = [*packages.look(), *machine.look(args.out or Path("runs"))]
    if not args.quick:
        found += machine.look_with_torch()
    if args.recipe is None:
        return found
    from potstill.doctor import endpoints
    from potstill.recipe import load_recipe

    try:
        recipe = load_recipe(args.recipe, args.overrides)
    except PotstillError as error:
        return [*found, problem("recipe", f"{error.where}: {error.what}", error.remedy)]
    return [*found, ok("recipe", f"{recipe.name}: {len(recipe.stages)} stages, and every name in it resolves"),
            *packages.look_for(recipe), *endpoints.look(recipe)]  # fmt: skip


def _print(found: "Sequence[Finding]") -> None:
    from rich.text import Text

    console = common.console()
    for one in found:
        line = Text.assemble((f"{one.state:8}", STYLES[one.state]), f"{one.about}: {one.what}")
        if one.remedy:
            line.append(f". {one.remedy}")
        console.print(line, soft_wrap=True)
    problems = sum(one.state == "problem" for one in found)
    console.print(f"\n{problems or 'No'} problem{'' if problems == 1 else 's'}.")
