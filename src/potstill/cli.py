"""The command line: verbs to functions. It knows no model and no tensor, and imports a verb's work when it is asked."""

import argparse
import errno
import io
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from potstill import __version__
from potstill.errors import PotstillError, StorageError, reading, reason

if TYPE_CHECKING:
    from rich.console import Console

    from potstill.recipe import Recipe

DESCRIPTION = "Turns any teacher into a small aligned language model that its user owns, with proof that it got better."
EXAMPLES = """examples:
  potstill run miniature                     the whole way in minutes: no download, no key, no GPU
  potstill plan my-recipe.yaml               what would run, and what it is likely to cost
  potstill run my-recipe.yaml dpo.beta=0.05  only what that changes runs again
  potstill show runs/miniature pairs         what a stage made
  potstill compare runs/miniature:sft runs/miniature:dpo   whether it got better, question by question
  potstill journal runs/miniature            the replies that were paid for
  potstill chat runs/miniature               talk to the last model
  potstill score gpt-4_single.jsonl          published numbers anew, with intervals
"""


BUG = 70
"""The exit code after a traceback: EX_SOFTWARE of sysexits.h."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for what a user can mend, 130 or 143 for an interruption, 70 for a
    bug.

    `compare --require` adds 1 for a regression and 3 where it cannot be told.
    """
    try:
        return _run_verb(arguments)
    except Exception:  # Python would end with 1, which says that a model got worse
        traceback.print_exc()
        return BUG


def _run_verb(arguments: Sequence[str] | None) -> int:
    args = _arguments(arguments)
    _open_streams(runs=args.verb is _run)
    # OpenMP's threads wait for each other by spinning. Without end, that makes a busy machine several times slower; not
    # at all, it halves the speed of small models on an idle one. Said before torch is imported, here or in a child.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        code: int = args.verb(args)
        sys.stdout.flush()
    except PotstillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130
    except _ReaderLeft:
        return 0
    return code


class _ReaderLeft(Exception):
    """Whoever read us has seen enough."""


class _Output(io.FileIO):
    """A standard stream whose reader may leave. A run is worth more than its lines: it goes on in silence."""

    def __init__(self, number: int, *, runs: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._runs = runs

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for this, and for what comes
            left = error.errno in (errno.EPIPE, errno.EIO)
            if self.fileno() == 2 or (left and self._runs):
                return super().write(data)
            if left:
                raise _ReaderLeft from error
            raise StorageError(
                "standard output", f"it cannot be written: {reason(error)}", "Lead it elsewhere and run again"
            ) from error


def _open_streams(*, runs: bool) -> None:
    """Standard streams that are there even where they were closed, and that no text is too much for in any locale.

    What a test or a program put in their place stays.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        raw = _Output(number, runs=runs) if number else io.FileIO(number, closefd=False)
        buffer = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
        encoding, errors = stream.encoding if stream else "utf-8", "backslashreplace" if number else "replace"
        setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors, line_buffering=True))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed. Overrides may stand before options, after them, and between."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="potstill",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    run = verbs.add_parser("run", help="run a recipe; what is sealed already is not run again")
    run.set_defaults(verb=_run)
    plan = verbs.add_parser("plan", help="say what would run, and the teacher calls and tokens to expect")
    plan.set_defaults(verb=_plan)
    for verb in (run, plan):
        verb.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
        verb.add_argument("overrides", nargs="*", metavar="key=value", help="written over the recipe: dpo.beta=0.05")
        verb.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/NAME)")
        verb.add_argument("--until", metavar="STAGE", help="only what this stage needs, and itself")
    plan.add_argument(
        "--trial",
        type=_count,
        metavar="N",
        help="first try N rows in each stage that asks, to tell calls, tokens and money better; replies are kept",
    )
    run.add_argument(
        "--launch",
        type=shlex.split,
        default=[],
        metavar="COMMAND",
        help="start workers with it, such as 'torchrun ...'",
    )

    status = verbs.add_parser("status", help="say what of a run is sealed, and who works in its folder")
    status.set_defaults(verb=_status)
    status.add_argument("run", metavar="RUN", help="a run's folder; or its name or recipe: then runs/NAME")

    show = verbs.add_parser("show", help="print what a stage made: its manifest and first rows, or its model")
    show.set_defaults(verb=_show)
    show.add_argument("run", metavar="RUN", help="a run's folder; or its name or recipe: then runs/NAME")
    show.add_argument("stage", metavar="STAGE", help="the stage's name")
    show.add_argument("--rows", type=_count_or_none, default=3, metavar="N", help="how many rows (default: 3)")
    show.add_argument("--dropped", action="store_true", help="the rows that were left out instead, with their reasons")

    _add_compare(verbs)
    _add_journal(verbs)
    _add_score(verbs)

    chat = verbs.add_parser("chat", help="talk to a model of a run, or to any model folder")
    chat.set_defaults(verb=_chat)
    chat.add_argument("run", metavar="RUN_OR_MODEL", help="a run's folder, name or recipe, or a model's folder")
    chat.add_argument("model", nargs="?", metavar="MODEL", help="which of the run's models (default: the last)")
    chat.add_argument("--system", default="", metavar="TEXT", help="what the model is told before the conversation")
    chat.add_argument(
        "--temperature", type=_within(0, 2), default=0.7, help="0 takes the likeliest token (default: 0.7)"
    )
    chat.add_argument(
        "--top-p", type=_within(0.01, 1), default=0.95, help="sample from this share of likelihood (default: 0.95)"
    )
    chat.add_argument("--top-k", type=int, default=50, help="sample from so many tokens; 0: from all (default: 50)")
    chat.add_argument("--max-tokens", type=_count, default=256, help="the longest answer (default: 256)")
    chat.add_argument("--seed", type=int, default=0, help="the same seed and words give the same answers (default: 0)")
    return parser


def _add_compare(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    compare = verbs.add_parser(
        "compare",
        help="set two models' scores against each other; with --require, as a gate",
        epilog="exit code: 0 everything required holds, 1 a regression, 3 it cannot be told, 2 bad input",
    )
    compare.set_defaults(verb=_compare)
    what = "RUN, RUN:MODEL, RUN:STAGE:MODEL, or a file or folder of scores, perhaps with :MODEL"
    compare.add_argument("before", metavar="BEFORE", help=what)
    compare.add_argument("after", metavar="AFTER", help="the same of what is new")
    compare.add_argument(
        "--require",
        metavar="TEXT",
        help="what AFTER - BEFORE has to exceed, where above 0 is better: 'mt_bench > -0.1, hellaswag > -1%%'",
    )
    compare.add_argument(
        "--level", type=_within(0.0001, 0.4), default=0.05, help="of the one-sided tests (default: 0.05)"
    )
    compare.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def _add_journal(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    journal = verbs.add_parser("journal", help="count, list, price, export or prune the replies that were paid for")
    journal.set_defaults(verb=_journal)
    journal.add_argument("run", metavar="RUN", help="a run's folder; or its name or recipe: then runs/NAME")
    journal.add_argument(
        "action",
        nargs="?",
        default="count",
        choices=("count", "list", "show", "price", "export", "prune"),
        help="count: tokens and money by stage (default); show: whole, by --key; price: at --input and --output",
    )
    journal.add_argument(
        "--model", default="", metavar="NAME", help="only replies of the model that the server calls so"
    )
    journal.add_argument("--stage", default="", metavar="STAGE", help="only those that this stage asked for first")
    journal.add_argument(
        "--finish", default="", metavar="END", help="only those that ended so: stop, length, empty, ..."
    )
    journal.add_argument("--before", default="", metavar="TIME", help="only those that came before it: 2026-01-31")
    journal.add_argument("--key", default="", metavar="KEY", help="only those whose key begins so")
    journal.add_argument("--rows", type=_count, default=20, metavar="N", help="how many to list (default: 20)")
    journal.add_argument("--input", type=_within(0, 1e6), metavar="USD", help="per million prompt tokens, for price")
    journal.add_argument("--output", type=_within(0, 1e6), metavar="USD", help="per million answer tokens, for price")
    journal.add_argument("--to", type=Path, metavar="FILE", help="a new file to export to (default: standard output)")
    journal.add_argument("--yes", action="store_true", help="prune without a selection: all of them")


def _add_score(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    score = verbs.add_parser("score", help="published numbers from stored judgments or annotations, with intervals")
    score.set_defaults(verb=_score)
    score.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="annotations of AlpacaEval, judgments of FastChat, leaderboards, evaluations, runs, or folders of these",
    )
    score.add_argument("--json", action="store_true", help="one JSON object with every figure")
    score.add_argument("--weights", type=Path, metavar="CSV", help="AlpacaEval's weights of length control")
    score.add_argument("--difficulty", type=Path, metavar="CSV", help="its instructions' difficulties")
    score.add_argument("--baseline", metavar="MODEL", help="only what was set against this model")


def _count(text: str, least: int = 1) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"at least {least}")
    return value


def _count_or_none(text: str) -> int:
    return _count(text, least=0)


def _within(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= float(text) <= high:
            raise argparse.ArgumentTypeError(f"between {low:g} and {high:g}")
        return float(text)

    return number


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _load(args: argparse.Namespace) -> "tuple[Recipe, Path]":
    """The recipe, and its run's folder."""
    from potstill.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    return recipe, args.out or Path("runs") / recipe.name


def _run(args: argparse.Namespace) -> int:
    from potstill import console, pipeline

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    recipe, folder = _load(args)
    signal.signal(signal.SIGTERM, terminate)
    try:
        pipeline.run(recipe, folder, console.listener(_console()), args.until, args.launch)
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


@reading()
def _plan(args: argparse.Namespace) -> int:
    from potstill.overlap import refuse_shared
    from potstill.plan import make_plan
    from potstill.views import plan_view
    from potstill.workspace import Hashes, Workspace

    recipe, folder = _load(args)
    if args.trial:
        from potstill.trial import run_trial

        for name, why in run_trial(recipe, folder, args.trial, args.until).items():
            sys.stderr.write(f"{name} could not be tried on {args.trial} rows: {why}\n")
    plan = make_plan(recipe, Workspace(folder), Hashes(folder / "hashes.json")).until(args.until)
    refuse_shared(plan)
    plan_view(_console(), plan, Workspace(folder))
    return 0


@reading()
def _status(args: argparse.Namespace) -> int:
    from potstill.views import status_view
    from potstill.workspace import open_run

    status_view(_console(), open_run(args.run))
    return 0


@reading()
def _show(args: argparse.Namespace) -> int:
    from potstill.show import show
    from potstill.workspace import open_run

    show(_console(), open_run(args.run), args.stage, args.rows, args.dropped)
    return 0


def _print_json(found: Mapping[str, Any]) -> None:
    """For programs: one object."""

    sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@reading()
def _compare(args: argparse.Namespace) -> int:
    from potstill.compare import compare
    from potstill.compare_view import compare_view

    found = compare(args.before, args.after, args.require, args.level)
    if args.json:
        _print_json(found)
    else:
        compare_view(_console(), found)
    return int(found["exit_code"])


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


@reading()
def _journal(args: argparse.Namespace) -> int:
    from potstill import replies
    from potstill.errors import DataError
    from potstill.sources import Price
    from potstill.teachers.journal import Selection
    from potstill.validation import check_utf8
    from potstill.workspace import open_run

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
        replies.totals_view(_console(), workspace, meant, price)
    elif args.action == "list":
        replies.list_view(_console(), workspace, meant, args.rows)
    elif args.action == "show":
        if not args.key:
            raise DataError("command line, show", "no reply is named", "Add --key and the beginning of its key")
        replies.show_view(_console(), workspace, meant)
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


@reading()
def _score(args: argparse.Namespace) -> int:
    from potstill.score import score

    found = score(args.files, args.weights, args.difficulty, args.baseline)
    if args.json:
        _print_json(found)
    else:
        from potstill.score_view import view

        view(_console(), found)
    return 0


def _chat(args: argparse.Namespace) -> int:
    from potstill.chat import Options, chat, find_model

    with reading():
        name, path = find_model(args.run, args.model)
    options = Options(args.system, args.temperature, args.top_p, args.top_k, args.max_tokens, args.seed)
    chat(name, path, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
