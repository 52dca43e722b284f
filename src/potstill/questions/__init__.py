"""The questions that come with potstill: files of rows that a recipe names as shipped:NAME.

They let an evaluation run where no benchmark is at hand. What each file holds, docs/evaluation.md says.
"""

from pathlib import Path

BEGINS = "shipped:"
"""What tells such a name from a path."""


def shipped_questions() -> dict[str, Path]:
    """Every file of rows that comes with potstill, by its name."""
    return {path.stem: path.resolve() for path in sorted(Path(__file__).parent.glob("*.jsonl"))}


def shipped_names() -> list[str]:
    """Those names as a recipe writes them."""
    return [BEGINS + name for name in shipped_questions()]
