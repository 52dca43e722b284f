"""Whether what is shipped is whole: weights and a tokenizer that open, as they were sealed where a run sealed them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.artifact import check_bytes
from potstill.errors import ModelError
from potstill.shipping.hub import INDEX, model_files

AGAIN = "Get the whole of it again"


def check_model(folder: Path) -> None:
    """ModelError or StorageError where a model's folder is not whole. Weights are opened, not read."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(str(folder), "there is no config.json in it", "Name a model's folder in Hugging Face layout")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", INDEX):
        if (folder / name).is_file():
            read_object(folder / name)
    names = model_files(folder)
    check_bytes(folder, names)
    check_tensors([folder / name for name in names if name.endswith(".safetensors")])
    check_tokenizer(folder)


def check_tensors(files: Sequence[Path]) -> None:
    """ModelError where one of these files is cut, or holds no tensor."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(str(file), framework="numpy") as opened:
                some = bool(opened.keys())
        except SafetensorError as error:
            raise ModelError(str(file), f"these weights are damaged: {error}", "Get the whole of them again") from error
        if not some:
            raise ModelError(str(file), "no tensor is in it", AGAIN)


def check_tokenizer(folder: Path) -> None:
    """ModelError where there is none, or it does not open."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        if any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json")):
            return
        raise ModelError(str(folder), "there is no tokenizer in it", AGAIN)
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        first = str(error).splitlines()[0][:200]
        raise ModelError(str(file), f"this tokenizer is damaged: {first}", AGAIN) from error


def read_object(file: Path) -> dict[str, Any]:
    """ModelError where a file is no JSON object."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(str(file), f"this is not JSON: {str(error)[:200]}", AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(str(file), "this is no JSON object", AGAIN)
    return found
