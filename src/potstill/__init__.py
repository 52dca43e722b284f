"""potstill turns any teacher into a small aligned language model that its user owns.

>>> import potstill
>>> made = potstill.stage("curate", data=[{"prompt": "Name a river.", "completion": "the rhine"}], truecase=False)
>>> made.facts["rows"]
1

What the command line does has the same names here; docs/library.md shows them. Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.errors import (
        BudgetError,
        BusyError,
        DataError,
        ModelError,
        PotstillError,
        RecipeError,
        StorageError,
        TeacherError,
    )
    from potstill.library.face import load_recipe, make_plan, open_run, run, stage
    from potstill.library.handles import Made, Planned, Run, Scores

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "BusyError",
    "DataError",
    "Made",
    "ModelError",
    "Planned",
    "PotstillError",
    "RecipeError",
    "Run",
    "Scores",
    "StorageError",
    "TeacherError",
    "load_recipe",
    "make_plan",
    "open_run",
    "run",
    "stage",
]


def __getattr__(name: str) -> Any:
    """The exported names, from where they live."""
    if name not in __all__:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    import importlib

    home = "errors" if name.endswith("Error") else "library.handles" if name[0].isupper() else "library.face"
    return getattr(importlib.import_module(f"potstill.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
