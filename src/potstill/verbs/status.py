"""`potstill status`: how far a run is."""

import argparse

from potstill.errors import reading
from potstill.verbs import common

HELP = "say what of a run is sealed, and who works in its folder"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_run(parser)


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.runs.workspace import open_run
    from potstill.terminal.views import status_view

    status_view(common.console(), open_run(args.run))
    return 0
