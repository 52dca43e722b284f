"""`potstill plan`: what a run would do, and what it would take."""

import argparse
import sys

from potstill.errors import reading
from potstill.verbs import common

HELP = "say what would run, and the teacher calls and tokens to expect"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_recipe(parser)
    parser.add_argument(
        "--trial",
        type=common.count,
        metavar="N",
        help="first try N rows in each stage that asks, to tell calls, tokens and money better; replies are kept",
    )


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.overlap import refuse_shared
    from potstill.plan import make_plan
    from potstill.views import plan_view
    from potstill.workspace import Hashes, Workspace

    recipe, folder = common.load(args)
    if args.trial:
        from potstill.trial import run_trial

        for name, why in run_trial(recipe, folder, args.trial, args.until).items():
            sys.stderr.write(f"{name} could not be tried on {args.trial} rows: {why}\n")
    plan = make_plan(recipe, Workspace(folder), Hashes(folder / "hashes.json")).until(args.until)
    refuse_shared(plan)
    plan_view(common.console(), plan, Workspace(folder))
    return 0
