"""The optional parts of potstill: the package behind each, and which of them a stage needs that this machine lacks."""

from collections.abc import Iterable
from importlib.util import find_spec

from potstill.errors import RecipeError
from potstill.stages.base import StageConfig

PACKAGES = {"hub": "datasets", "ray": "ray", "qlora": "bitsandbytes", "leaderboard": "lm-eval"}
"""By extra, as in `pip install 'potstill[hub]'`."""


def missing(config: StageConfig) -> list[str]:
    """Extras that the stage cannot run without and whose package is not installed."""
    return [extra for extra in config.extras() if find_spec(PACKAGES[extra].replace("-", "_")) is None]


def what_is_missing(extra: str) -> tuple[str, str]:
    """In words, and what to do about it."""
    return f"{PACKAGES[extra]}, which is not installed", f"Run pip install 'potstill[{extra}]'"


def check_extras(stages: Iterable[tuple[str, StageConfig]]) -> None:
    """RecipeError at the first of these named stages that lacks one. For a run: a plan is made without them."""
    for name, config in stages:
        for extra in missing(config):
            what, remedy = what_is_missing(extra)
            raise RecipeError(f"stages.{name}", f"it needs {what}", remedy)
