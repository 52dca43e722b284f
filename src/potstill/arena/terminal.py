"""The arena on the terminal: a question, two answers, a key."""

import getpass
import sys
from collections.abc import Iterator
from contextlib import suppress

from potstill.arena.battles import Arena, open_arena
from potstill.arena.votes import Battle, Standing, Vote
from potstill.errors import PotstillError
from potstill.reporting.told import Form, told
from potstill.terminal.chat import Options
from potstill.terminal.console import clean

KEYS: dict[str, Vote] = {"l": "left", "r": "right", "t": "tie", "b": "both_bad"}
ASKED = "[l]eft (first) is better, [r]ight (second), [t]ie, [b]oth bad, [s]kip: "
HELP = """Ask something; two models answer, in an order drawn anew each time.
/standings      how they stand
/exit           leave; so does Ctrl-D"""


def meet(run: str, names: tuple[str, ...], options: Options, voter: str) -> None:
    """Battles until the input ends. Where it is no terminal, lines are questions and votes in turn."""
    arena = open_arena(run, names, options)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        if on_terminal:
            _say(f"{len(arena.names)} models listen.\n{HELP}")
        lines = _lines(on_terminal)
        with suppress(StopIteration, EOFError):
            while True:
                _round(arena, lines, voter or user(), prompted=on_terminal)
    finally:
        arena.close()
    if arena.votes():
        _say("\n" + table(arena.standings()))


def _round(arena: Arena, lines: Iterator[str], voter: str, *, prompted: bool) -> None:
    if prompted:
        sys.stdout.write("\n› ")
        sys.stdout.flush()
    question = next(lines)
    if question in ("/exit", "/quit"):
        raise EOFError
    if question.startswith("/"):
        _say(table(arena.standings()) if question == "/standings" else HELP)
        return
    if not question:
        return
    try:
        battle = arena.begin(question)
    except PotstillError as error:
        _say(str(error))
        return
    for place, side in (("LEFT", battle.left), ("RIGHT", battle.right)):
        _say(f"\n{place}\n{clean(side.text) or '(it says nothing)'}")
    _vote(arena, battle, lines, voter)


def _vote(arena: Arena, battle: Battle, lines: Iterator[str], voter: str) -> None:
    while True:
        sys.stdout.write("\n" + ASKED)
        sys.stdout.flush()
        key = next(lines).lower()[:1]
        if key == "s":
            _say("Skipped; nothing is kept.")
            return
        if key in KEYS:
            arena.vote(battle.id, KEYS[key], voter)
            _say(f"Left was {battle.left.model}, right was {battle.right.model}.")
            return


def table(found: list[Standing]) -> str:
    """A line a model, and where there are more than two, a line for each two."""
    form = Form(1, percent=True)
    return "\n".join(
        f"{one.model}{f' against {one.against}' if one.against else ''}: {told(one.share.to_json(), form)}; "
        f"{one.wins} won, {one.losses} lost, {one.ties} tied"
        for one in found
    )


def _lines(on_terminal: bool) -> Iterator[str]:
    if not on_terminal:
        for line in sys.stdin:
            yield line.strip()
        return
    import readline  # noqa: F401  input() then edits lines and remembers them

    with suppress(EOFError):
        while True:
            yield input("").strip()


def user() -> str:
    """Who sits there, as the system calls them."""
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "somebody"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
