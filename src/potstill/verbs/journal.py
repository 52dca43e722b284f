"""`potstill journal`: the replies that were paid for."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from potstill.errors import reading
from potstill.verbs import common, complete

HELP = "count, list, price, export or prune the replies that were paid for"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    common.add_run(parser)
    parser.add_argument(
        "action",
        nargs="?",
        default="count",
        choices=("count", "list", "show", "price", "export", "prune"),
        help="count: tokens and money by stage (default); show: whole, by --key; price: at --input and --output",
    )
    parser.add_argument(
        "--model", default="", metavar="NAME", help="only replies of the model that the server calls so"
    )
    stage = parser.add_argument("--stage", default="", metavar="STAGE", help="only those that it asked for first")
    common.completed(stage, complete.stages)
    parser.add_argument(
        "--finish", default="", metavar="END", help="only those that ended so: stop, length, empty, ..."
    )
    parser.add_argument("--before", default="", metavar="TIME", help="only those that came before it: 2026-01-31")
    parser.add_argument("--key", default="", metavar="KEY", help="only those whose key begins so")
    parser.add_argument("--rows", type=common.count, default=20, metavar="N", help="how many to list (default: 20)")
    parser.add_argument(
        "--input", type=common.within(0, 1e6), metavar="USD", help="per million prompt tokens, for price"
    )
    parser.add_argument(
        "--output", type=common.within(0, 1e6), metavar="USD", help="per million answer tokens, for price"
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="a new file to export to (default: standard output)")
    parser.add_argument("--yes", action="store_true", help="prune without a selection: all of them")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.errors import DataError
    from potstill.runs.workspace import open_run
    from potstill.sources import Price
    from potstill.teachers.journal import Selection
    from potstill.terminal import replies
    from potstill.validation import check_utf8

    workspace = open_run(args.run)
    for name in ("model", "stage", "finish", "key"):
        check_utf8(getattr(args, name), f"command line, --{name}")
    meant = Selection(args.model, args.stage, args.finish, _time(args.before), args.key)
    price = None
    if args.action == "price":
        if args.input is None or args.output is None:
            raise DataError("command line, price", "no price is given", "Add --input USD and --output USD")
        price = Price(input=args.input, output=args.output)
    if args.action in ("count", "price"):
        replies.totals_view(common.console(), workspace, meant, price)
    elif args.action == "list":
        replies.list_view(common.console(), workspace, meant, args.rows)
    elif args.action == "show":
        if not args.key:
            raise DataError("command line, show", "no reply is named", "Add --key and the beginning of its key")
        replies.show_view(common.console(), workspace, meant)
    elif args.action == "export":
        count = replies.export(workspace, meant, args.to)
        if args.to:
            sys.stdout.write(f"{count:,} replies in {args.to}.\n")
    else:
        if meant == Selection() and not args.yes:
            what = "this would forget every reply, and the same questions would be paid for again"
            raise DataError(
                "command line, prune", what, "Select some (--stage, --model, --finish, --before), or add --yes"
            )
        sys.stdout.write(f"{replies.prune(workspace, meant):,} replies forgotten; what they cost stays counted.\n")
    return 0


def _time(text: str) -> str:
    """A time as the journal writes it: in UTC, where nothing else is said."""
    from potstill.errors import DataError

    if not text:
        return ""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        what = f"{text!r} is no time; expected one such as 2026-01-31 or 2026-01-31T12:00"
        raise DataError("command line, --before", what, "Write it so") from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")
