"""`potstill run`: a recipe, from where it was."""

import argparse
import shlex
import signal
import sys
from types import FrameType
from typing import NoReturn

from potstill.errors import TimeIsUp
from potstill.verbs import common

HELP = "run a recipe; what is sealed already is not run again"


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
    parser.add_argument(
        "--log",
        choices=("text", "json"),
        help="calm lines, or a JSON object a line; default: bars on a terminal, lines elsewhere",
    )
    parser.add_argument("--quiet", action="store_true", help="only warnings, errors and the result; logs/ has the rest")


def main(args: argparse.Namespace) -> int:
    from potstill.runs import pipeline
    from potstill.terminal import console

    recipe, folder = common.load(args)
    _heed_signals()
    try:
        listener = console.listener(common.console(), args.log, quiet=args.quiet)
        pipeline.run(recipe, folder, listener, args.until, args.launch)
    except KeyboardInterrupt:
        sys.stderr.write(f"Stopped. What is sealed stays. Go on with:\n  {resume_command(args)}\n")
        raise
    return 0


def _heed_signals() -> None:
    """A time limit that comes near ends a run as SIGTERM does; a terminal that goes away does not.

    Children know nothing of either: a launcher would end at SIGUSR1, and take its workers with it. `launch` blocks it
    for them; that SIGHUP is ignored, they inherit.
    """
    signal.signal(signal.SIGUSR1, _time_is_up)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _time_is_up(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeIsUp


def resume_command(args: argparse.Namespace) -> str:
    """The command that goes on where a run was stopped."""
    words = ["potstill", "run", args.recipe, *args.overrides]
    words += ["--out", str(args.out)] if args.out else []
    words += ["--until", args.until] if args.until else []
    words += ["--launch", shlex.join(args.launch)] if args.launch else []
    words += ["--log", args.log] if args.log else []
    words += ["--quiet"] if args.quiet else []
    return shlex.join(words)
