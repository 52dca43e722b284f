"""`potstill view`: a run as pages in a browser."""

import argparse
import os
import sys
import threading

from potstill.errors import reading
from potstill.verbs import common

HELP = "look at a run in a browser: its stages, rows, curves and scores, live while it works"
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_run(parser)
    parser.add_argument("--port", type=common.port, default=0, metavar="N", help="which port (default: any free one)")
    parser.add_argument("--no-browser", action="store_true", help="only say the address")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.arena.rounds import at_work
    from potstill.runs.workspace import open_run
    from potstill.view.server import LOOPBACK, listen, serve

    workspace = open_run(args.run)
    workspace.describe()
    listener = listen(args.port)
    address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
    sys.stdout.write(f"{workspace.path} is at {address}\nOnly this machine can reach it. Ctrl-C ends it.\n")
    sys.stdout.flush()
    if not args.no_browser and _has_display():
        threading.Timer(0.5, _open, [address]).start()
    try:
        serve(workspace, listener)
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()
    if at_work():  # torch cannot be stopped, and aborts a Python that ends around it; votes are on the disk
        sys.stdout.flush()
        os._exit(0)
    return 0


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in DISPLAYS)


def _open(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
