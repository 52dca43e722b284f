"""`potstill logs`: what a run has said, and what it says now."""

import argparse
import sys

from potstill.errors import reading
from potstill.verbs import common

HELP = "print what a run has said so far, from its log; --follow: and what it says from now on"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_run(parser)
    parser.add_argument("--follow", action="store_true", help="go on until the run ends; Ctrl-C leaves it running")
    parser.add_argument("--all", action="store_true", help="also what runs before the last one have said")
    parser.add_argument("--log", choices=("text", "json"), default="text", help="lines (default), or JSON objects")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.runs.events import follow, json_line, kept_events
    from potstill.runs.workspace import open_run
    from potstill.terminal.console import print_line, said

    workspace = open_run(args.run)
    for event in follow(workspace) if args.follow else kept_events(workspace, earlier=args.all):
        print_line(sys.stdout, json_line(event) if args.log == "json" else said(event))
    return 0
