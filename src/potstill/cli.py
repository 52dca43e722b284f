"""The command line: verbs to functions. It knows no model and no tensor, and imports a verb's work when it is asked."""

import argparse
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from potstill import __version__
from potstill.environment import prepare
from potstill.errors import EXIT_CODES, PotstillError, StorageError, Terminated, reason
from potstill.verbs import VERBS, run

DESCRIPTION = "Turns any teacher into a small aligned language model that its user owns, with proof that it got better."
EXAMPLES = """examples:
  potstill run miniature                     the whole way in minutes: no download, no key, no GPU
  potstill plan my-recipe.yaml               what would run, and what it is likely to cost
  potstill plan my-recipe.yaml --hardware 8xH100   memory, hours and dollars there
  potstill doctor my-recipe.yaml             whether this machine and its endpoints are fit for it
  potstill run my-recipe.yaml dpo.beta=0.05  only what that changes runs again
  potstill show runs/miniature pairs         what a stage made
  potstill view runs/miniature               all of it in a browser, live while it runs
  potstill compare runs/miniature:sft runs/miniature:dpo   whether it got better, question by question
  potstill journal runs/miniature            the replies that were paid for
  potstill chat runs/miniature               talk to the last model
  potstill serve runs/miniature:dpo          the same for any OpenAI client
  potstill score gpt-4_single.jsonl          published numbers anew, with intervals

exit codes:
""" + "".join(f"  {code:<4} {meaning}\n" for code, meaning in EXIT_CODES.items())

BUG = 70
"""The exit code after a traceback: EX_SOFTWARE of sysexits.h."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, one of `errors.EXIT_CODES`."""
    try:
        return _run_verb(arguments)
    except Exception:  # Python would end with 1, which says that a model got worse
        traceback.print_exc()
        return BUG


def _run_verb(arguments: Sequence[str] | None) -> int:
    args = _arguments(arguments)
    _open_streams(runs=args.verb is run)
    prepare()
    signal.signal(signal.SIGTERM, _terminate)  # the first process of a container is deaf to what it does not handle
    try:
        code: int = args.verb.main(args)
        sys.stdout.flush()
    except PotstillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt as stop:
        return int(getattr(stop, "exit_code", 130))
    except _ReaderLeft:
        return 0
    return code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


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
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"]:
        given = [*given[1:], "--help"]
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
        import argcomplete

        argcomplete.autocomplete(parser)
    if given and not given[0].startswith("-") and given[0] not in VERBS:
        from potstill.validation import nearest

        parser.error(f"no verb is called {given[0]!r}{nearest(given[0], VERBS)}; expected one of: {', '.join(VERBS)}")
    args, rest = parser.parse_known_args(given)
    if rest and ("overrides" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}. See: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="potstill",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"potstill {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    for name, verb in VERBS.items():
        add = verbs.add_parser(name, help=verb.HELP, epilog=getattr(verb, "EPILOG", None))
        add.set_defaults(verb=verb)
        verb.arguments(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
