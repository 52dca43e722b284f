"""`potstill push`: an export to the Hub."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import reading

if TYPE_CHECKING:
    from potstill.shipping.push import Parcel

HELP = "put an export on the Hugging Face Hub; without --yes it only says what would go"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "source",
        metavar="DIR_OR_RUN:MODEL",
        help="a folder that export made, or a model, exported for the Hub on the way",
    )
    parser.add_argument("repository", metavar="REPO", help="OWNER/NAME on the Hub")
    parser.add_argument("--yes", action="store_true", help="do it")
    parser.add_argument("--public", action="store_true", help="a repository that is made is for all to see")
    parser.add_argument("--licence", default="", help="of a model that is exported on the way")
    parser.add_argument(
        "--language", action="append", default=[], metavar="CODE", help="its language; may be given again"
    )


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.shipping.push import pack

    folder = Path(args.source)
    if (folder.is_dir() and not (folder / "manifest.json").is_file()) or ":" not in args.source:
        return _go(args, pack(folder, args.repository, private=not args.public))
    from potstill.shipping.export import Wish, export

    with tempfile.TemporaryDirectory() as aside:
        made = Path(aside) / "export"
        title = args.repository.rpartition("/")[2]
        export(args.source, made, Wish(title=title, licence=args.licence, languages=tuple(args.language)))
        return _go(args, pack(made, args.repository, private=not args.public))


def _go(args: argparse.Namespace, parcel: "Parcel") -> int:
    """Say what would go; send it where that is wanted."""
    from potstill.shipping.push import send
    from potstill.terminal.console import clean

    seen = "private" if parcel.private else "public"
    lines = [f"{parcel.kind} repository {parcel.repository}, {seen} where it is made anew: {len(parcel.files)} files"]
    lines += [f"{size:>15,} bytes  {clean(name)}" for name, size in parcel.files]
    lines += [f"{parcel.bytes:>15,} bytes in all", "", *(f"    {clean(line)}" for line in parcel.head), ""]
    sys.stdout.write("\n".join(lines) + "\n")
    if not args.yes:
        sys.stdout.write("Nothing was sent. Add --yes to send it.\n")
        return 0
    sys.stdout.write(f"It is there: {send(parcel)}\n")
    return 0
