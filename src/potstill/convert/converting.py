"""A config file of another tool to a recipe: which tool it is of, its recipe's text, and what became of each key."""

from dataclasses import dataclass
from pathlib import Path

from potstill.convert import axolotl, handbook
from potstill.convert.account import Account
from potstill.document import plain, read_document
from potstill.errors import RecipeError

TOOLS = {
    "base_model": ("axolotl", axolotl.convert),
    "model_name_or_path": ("alignment-handbook", handbook.convert),
}
"""By the key that only its configs have."""


@dataclass(frozen=True)
class Converted:
    """What came of a config."""

    tool: str
    text: str
    """The recipe, with its comments."""
    told: list[str]
    """What was assumed, and what became of each key."""
    account: Account


def convert(path: Path, devices: int | None = None, method: str | None = None) -> Converted:
    """The recipe that a config comes to.

    `devices`: on how many it is meant to train; None: what its tool's own instructions say. `method`: sft, dpo, orpo
    and the like, where the config does not say it. RecipeError where it is none of a known tool, or cannot be a recipe.
    """
    document = read_document(path)
    values = plain(document.value)
    if not isinstance(values, dict):
        raise RecipeError(str(path), "it holds no keys", "Name a config of the alignment handbook or of axolotl")
    found = [tool for key, tool in TOOLS.items() if values.get(key) is not None]
    if len(found) != 1:
        what = "it is neither a config of axolotl (base_model) nor of the alignment handbook (model_name_or_path)"
        raise RecipeError(str(path), what, "Name one of these")
    tool, to_draft = found[0]
    account = Account(document, values)
    try:
        draft, assumed = to_draft(account, devices, method)
    except RecipeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"its keys hold other things than {tool} takes there ({type(error).__name__}: {error})"
        raise RecipeError(str(path), what, f"Mend the config, so that {tool} reads it, and convert it again") from error
    account.settle()
    _unique([part.name for part in (*draft.models, *draft.stages)], path)
    draft.head = [f"From {path.name}, a config of {tool}, by potstill convert.", *assumed]
    told = [*[f"Assumed: {words}" for words in assumed], *account.lines()]
    return Converted(tool, draft.text([f"What became of the keys of {path.name}:", *told]), told, account)


def _unique(names: list[str], path: Path) -> None:
    """RecipeError where two parts of the recipe would have one name."""
    for name in names:
        if names.count(name) > 1:
            what = f"the same data stands there twice, as '{name}'"
            raise RecipeError(str(path), what, "Name it once, with a weight")
