"""The questions that come with potstill: files of rows that a recipe names as shipped:NAME.

They let an evaluation run where no benchmark is at hand. What each file holds, docs/evaluation.md says.
"""

from pathlib import Path

from potstill.errors import RecipeError

BEGINS = "shipped:"
"""What tells such a name from a path."""


def shipped_questions() -> dict[str, Path]:
    """Every file of rows that comes with potstill, by its name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.jsonl"))}


def shipped_names() -> list[str]:
    """Those names as a recipe writes them."""
    return [BEGINS + name for name in shipped_questions()]


def find_shipped(written: str, place: str, near: str = "") -> Path:
    """The file that `shipped:NAME` means. RecipeError at the place where there is none; `near` is a name like it."""
    found = shipped_questions().get(written.removeprefix(BEGINS))
    if found is None:
        what = f"'{written}' is not among the questions that come with potstill{near}"
        raise RecipeError(place, what, f"Name one of: {', '.join(shipped_names())}")
    return found.resolve()
