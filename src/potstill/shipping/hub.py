"""A model's folder as the Hub shows it: what transformers reads, and nothing of where and how it was made."""

import json
import shutil
from pathlib import Path

from potstill.artifact import storage_errors
from potstill.errors import ModelError, reading
from potstill.shipping.folder import write_text

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LOCAL = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash")
"""What libraries note of the machine that they ran on."""


def model_files(folder: Path) -> list[str]:
    """What of a model's folder belongs to the model. ModelError where its weights are not whole."""
    names = ["config.json", "generation_config.json", *TOKENIZER]
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        names += [INDEX, *shards]
    else:
        shards = [WEIGHTS]
        names.append(WEIGHTS)
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ModelError(str(folder), f"it lacks {missing[0]}", "Name a folder with whole weights in safetensors")
    return [name for name in names if (folder / name).is_file()]


@reading()
def lay_model(folder: Path, target: Path) -> None:
    """Copy the model. That it is whole was looked at before."""
    for name in model_files(folder):
        if name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            kept = {key: value for key, value in told.items() if key not in LOCAL}
            write_text(target / name, json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True))
        else:
            with storage_errors(target):
                shutil.copyfile(folder / name, target / name)


@reading()
def lay_tokenizer(folder: Path, target: Path) -> None:
    """Copy the tokenizer alone, with its template."""
    for name in TOKENIZER:
        if (folder / name).is_file():
            with storage_errors(target):
                shutil.copyfile(folder / name, target / name)
    config = target / "tokenizer_config.json"
    if config.is_file():
        told = json.loads(config.read_text(encoding="utf-8"))
        kept = {key: value for key, value in told.items() if key not in LOCAL}
        write_text(config, json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True))
