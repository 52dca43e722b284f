"""`potstill plan`: what a run would do, and what it would take."""

import argparse
import sys

from potstill.errors import RecipeError, reading
from potstill.verbs import common

HELP = "say what would run, the teacher calls to expect, and with --hardware memory, hours and dollars"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_recipe(parser)
    parser.add_argument(
        "--trial",
        type=common.count,
        metavar="N",
        help="first try N rows in each stage that asks, to tell calls, tokens and money better; replies are kept",
    )
    parser.add_argument(
        "--hardware",
        metavar="DEVICES",
        help="what it takes there: 8xH100, rtx4090, 1x24GB, cpu, 4x48GB@150TFLOPS@1.2USD",
    )
    parser.add_argument(
        "--gpu-usd", type=common.within(0, 10_000), metavar="USD", help="what an hour of one device costs"
    )
    parser.add_argument("--json", action="store_true", help="with --hardware: one JSON object, for programs")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.hardware import parse
    from potstill.runs.overlap import refuse_shared
    from potstill.runs.plan import make_plan
    from potstill.runs.workspace import Hashes, Workspace
    from potstill.terminal.views import plan_view, teachers_usd

    if args.hardware is None and (args.json or args.gpu_usd is not None):
        raise RecipeError(
            "command line", "--json and --gpu-usd say more about --hardware", "Add --hardware, such as 8xH100 or cpu"
        )
    hardware = None if args.hardware is None else parse(args.hardware, args.gpu_usd)
    recipe, folder = common.load(args)
    if args.trial:
        from potstill.runs.trial import run_trial

        for name, why in run_trial(recipe, folder, args.trial, args.until).items():
            sys.stderr.write(f"{name} could not be tried on {args.trial} rows: {why}\n")
    plan = make_plan(recipe, Workspace(folder), Hashes(folder / "hashes.json")).until(args.until)
    refuse_shared(plan)
    if not args.json:
        plan_view(common.console(), plan, Workspace(folder))
    if hardware is not None:
        from potstill.estimates.run import estimate
        from potstill.estimates.view import estimate_view

        found = estimate(plan, hardware, folder)
        if args.json:
            common.print_json({"recipe": recipe.name, **found.to_json(), "teachers_usd": teachers_usd(plan)})
        else:
            estimate_view(common.console(), found)
    return 0
