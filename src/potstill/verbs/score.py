"""`potstill score`: published numbers anew."""

import argparse
from pathlib import Path

from potstill.errors import reading
from potstill.verbs import common

HELP = "published numbers from stored judgments or annotations, with intervals"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="annotations of AlpacaEval, judgments of FastChat, leaderboards, evaluations, runs, or folders of these",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with every figure")
    parser.add_argument("--weights", type=Path, metavar="CSV", help="AlpacaEval's weights of length control")
    parser.add_argument("--difficulty", type=Path, metavar="CSV", help="its instructions' difficulties")
    parser.add_argument("--baseline", metavar="MODEL", help="only what was set against this model")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.scoring.score import score

    found = score(args.files, args.weights, args.difficulty, args.baseline)
    if args.json:
        common.print_json(found)
    else:
        from potstill.terminal.score_view import view

        view(common.console(), found)
    return 0
