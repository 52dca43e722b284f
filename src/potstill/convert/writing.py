"""The converted recipe, tried before anybody sees it, and written whole or not at all."""

import os
from pathlib import Path

from potstill.artifact import storage_errors
from potstill.convert.converting import Converted
from potstill.document import parse
from potstill.errors import RecipeError
from potstill.recipe import Recipe, read_recipe


def check(made: Converted, source: Path, folder: Path) -> Recipe:
    """The recipe as it is read in `folder`. RecipeError where what came of a config is none: of a value that potstill
    does not take, or a path that is not there."""
    try:
        return read_recipe(parse(made.text, f"the recipe of {source.name}"), folder)
    except RecipeError as error:
        what = f"what it comes to is refused: {error.where}: {error.what}"
        raise RecipeError(str(source), what, error.remedy) from error


def write(text: str, path: Path) -> None:
    """The file, whole or not at all. RecipeError where there is one already."""
    if path.exists():
        raise RecipeError(str(path), "there is a file already", "Name another with --to, or remove it")
    with storage_errors(path):
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
