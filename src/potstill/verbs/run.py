"""`potstill run`: a recipe, from where it was."""

import argparse
import shlex
import signal
import sys
from types import FrameType
from typing import NoReturn

from potstill.verbs import common

HELP = "run a recipe; what is sealed already is not run again"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_recipe(parser)
    parser.add_argument(
        "--launch",
        type=shlex.split,
        default=[],
        metavar="COMMAND",
        help="start workers with it, such as 'torchrun ...'",
    )


def main(args: argparse.Namespace) -> int:
    from potstill import console, pipeline

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    recipe, folder = common.load(args)
    signal.signal(signal.SIGTERM, terminate)
    try:
        pipeline.run(recipe, folder, console.listener(common.console()), args.until, args.launch)
    except KeyboardInterrupt:
        sys.stderr.write(f"Stopped. What is sealed stays. Go on with:\n  {resume_command(args)}\n")
        raise
    return 0


def resume_command(args: argparse.Namespace) -> str:
    """The command that goes on where a run was stopped."""
    words = ["potstill", "run", args.recipe, *args.overrides]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--until", args.until] if args.until else []
    words += ["--launch", shlex.join(args.launch)] if args.launch else []
    return shlex.join(words)
