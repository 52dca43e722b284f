"""`potstill show`: what a stage made."""

import argparse

from potstill.errors import reading
from potstill.verbs import common, complete

HELP = "print what a stage made: its manifest and first rows, or its model"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_run(parser)
    common.completed(parser.add_argument("stage", metavar="STAGE", help="the stage's name"), complete.stages)
    parser.add_argument("--rows", type=common.count_or_none, default=3, metavar="N", help="how many rows (default: 3)")
    parser.add_argument(
        "--dropped", action="store_true", help="the rows that were left out instead, with their reasons"
    )


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.runs.workspace import open_run
    from potstill.terminal.show import show

    show(common.console(), open_run(args.run), args.stage, args.rows, args.dropped)
    return 0
