"""`potstill compare`: two models' scores, and the gate over them."""

import argparse

from potstill.errors import reading
from potstill.verbs import common

HELP = "set two models' scores against each other; with --require, as a gate"
EPILOG = "exit code: 0 everything required holds, 1 a regression, 3 it cannot be told, 2 bad input"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    what = "RUN, RUN:MODEL, RUN:STAGE:MODEL, or a file or folder of scores, perhaps with :MODEL"
    parser.add_argument("before", metavar="BEFORE", help=what)
    parser.add_argument("after", metavar="AFTER", help="the same of what is new")
    parser.add_argument(
        "--require",
        metavar="TEXT",
        help="what AFTER - BEFORE has to exceed, where above 0 is better: 'mt_bench > -0.1, hellaswag > -1%%'",
    )
    parser.add_argument(
        "--level", type=common.within(0.0001, 0.4), default=0.05, help="of the one-sided tests (default: 0.05)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.scoring.compare import compare
    from potstill.terminal.compare_view import compare_view

    found = compare(args.before, args.after, args.require, args.level)
    if args.json:
        common.print_json(found)
    else:
        compare_view(common.console(), found)
    return int(found["exit_code"])
