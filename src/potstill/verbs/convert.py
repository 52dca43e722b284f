"""`potstill convert`: another tool's config as a recipe."""

import argparse
import sys
from pathlib import Path

from potstill.errors import reading
from potstill.verbs import common

HELP = "a config of alignment-handbook or axolotl as a recipe, every key accounted for"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a YAML config of alignment-handbook or of axolotl")
    parser.add_argument("--to", type=Path, metavar="RECIPE", help="the recipe's file (default: it is printed)")
    parser.add_argument(
        "--devices",
        type=common.count,
        metavar="N",
        help="devices that it is meant to train on: the global batch goes by that (default: what the tool's own "
        "instructions say)",
    )
    parser.add_argument(
        "--as",
        dest="method",
        choices=("sft", "dpo", "ipo", "kto", "orpo", "simpo"),
        help="what it trains, where the config does not say so itself",
    )


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.convert.converting import convert
    from potstill.convert.writing import check, write

    made = convert(args.file, args.devices, args.method)
    check(made, args.file, args.to.parent if args.to else args.file.parent)
    if args.to is None:
        sys.stdout.write(made.text)
        return 0
    write(made.text, args.to)
    sys.stdout.write("\n".join([f"{args.to}: a recipe of {args.file}, a config of {made.tool}.", *made.told]) + "\n")
    sys.stdout.write(f"Next: potstill plan {args.to}\n")
    return 0
