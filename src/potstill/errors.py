"""Everything that can go wrong in a way a user can mend, as one tree.

    PotstillError                  one line: where, what and what was expected, remedy; exit code 2
    ├── RecipeError    ValueError  the recipe cannot be run as it is written
    ├── DataError      ValueError  a row or file that a stage was given
    ├── ModelError     ValueError  a model, tokenizer or template that does not fit its use
    ├── TeacherError               a teacher or judge that cannot be reached or answers rubbish
    ├── BudgetError                the next request could cost more than the budget has left
    ├── StorageError   OSError     a folder, a disk, a sealed artifact
    ├── BusyError      OSError     another run holds the folder, another program the port
    └── Stopped                    it was asked to stop, and can go on; exit code 143

Anything else that escapes is a bug and keeps its traceback; exit code 70.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

EXIT_CODES: Final = {
    0: "done",
    1: "compare --require: a regression",
    2: "something to mend, said in one line; what is sealed stays",
    3: "compare --require: it cannot be told",
    70: "a bug in potstill, with its traceback",
    75: "stopped by SIGUSR1, before a time limit: the same command goes on",
    130: "stopped by Ctrl-C: the same command goes on",
    143: "stopped by SIGTERM: the same command goes on",
}
"""What every command may end with. 70 and 75 are EX_SOFTWARE and EX_TEMPFAIL of sysexits.h."""


_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What would move a terminal's cursor, colour it or turn its text around. Names and servers may hold anything."""


def _sentence(text: str) -> str:
    """With one full stop at its end, or with the dots that it ends with."""
    return text if text.endswith("...") else text.rstrip(".") + "."


class PotstillError(Exception):
    """One line for a person: where it is, what is wrong and what was expected, what to do about it."""

    exit_code = 2

    def __init__(self, where: str, what: str, remedy: str) -> None:
        self.where, self.what, self.remedy = where, what, remedy
        super().__init__(where, what, remedy)

    def __str__(self) -> str:
        line = f"{self.where}: {_sentence(self.what)} {_sentence(self.remedy)}"
        return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), " ".join(line.split()))


class RecipeError(PotstillError, ValueError):
    """The recipe cannot be run as it is written."""


class DataError(PotstillError, ValueError):
    """A row or a file that a stage was given cannot be used."""


class ModelError(PotstillError, ValueError):
    """A model, tokenizer or chat template does not fit its use."""


class TeacherError(PotstillError):
    """A teacher or judge cannot be reached, refuses, or answers nothing that can be used."""


class BudgetError(PotstillError):
    """The next request could cost more than the budget has left. What came is kept."""


class StorageError(PotstillError, OSError):
    """A folder cannot be written, a disk is full, a sealed artifact is damaged."""


class BusyError(PotstillError, OSError):
    """Another run holds the folder, or another program the port."""


class Stopped(PotstillError):
    """A stage was asked to end, as schedulers do with SIGTERM, and wrote down where it stands."""

    exit_code = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""

    exit_code = 143


class TimeIsUp(KeyboardInterrupt):
    """SIGUSR1, which schedulers send some minutes before a time limit."""

    exit_code = 75


def reason(error: OSError) -> str:
    """Why the operating system refused, in its words: "permission denied"."""
    return (error.strerror or type(error).__name__).lower()


@contextmanager
def reading() -> Iterator[None]:
    """Turn the refusal to read a file into one clear line. An error that names no file is about something else."""
    try:
        yield
    except PotstillError:
        raise
    except OSError as error:
        if error.filename is None:
            raise
        what = f"it cannot be read: {reason(error)}"
        raise StorageError(str(error.filename), what, "Mend the path or its permissions") from error
