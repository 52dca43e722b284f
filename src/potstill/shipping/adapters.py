"""The adapter that training left beside a merged model, as peft loads it, with its tokenizer."""

import json
import shutil
from pathlib import Path

from potstill.artifact import check_bytes, storage_errors
from potstill.errors import ModelError, reading
from potstill.shipping.folder import write_text
from potstill.shipping.hub import lay_tokenizer
from potstill.shipping.source import Source
from potstill.shipping.whole import AGAIN, check_tensors, read_object
from potstill.training.adapters import FOLDER, WEIGHTS_FILE

CONFIG = "adapter_config.json"


@reading()
def lay_adapter(source: Source, target: Path, base: str | None) -> str:
    """Copy it; `base` is what it is to be loaded onto. Returns that. ModelError where there is none, or no base."""
    folder = source.folder / FOLDER
    where = f"model {source.name}"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS_FILE).is_file():
        what = "no adapter lies beside it: it was trained whole, or by another stage"
        raise ModelError(where, what, "Export it with --format hub, or name the stage that trained the adapter")
    check_bytes(source.folder, [f"{FOLDER}/{name}" for name in (CONFIG, WEIGHTS_FILE)])
    check_tensors([folder / WEIGHTS_FILE])
    config = read_object(folder / CONFIG)
    if not config.get("peft_type"):
        raise ModelError(str(folder / CONFIG), "it says no peft_type, so no adapter can be made of it", AGAIN)
    named = base or _begun_with(source) or config.get("base_model_name_or_path")
    if not named:
        raise ModelError(
            where,
            f"its adapter was trained on {_stage_before(source)}, which has no name outside of this run",
            "Export that model too, and say where it will lie: --base OWNER/NAME",
        )
    config["base_model_name_or_path"] = named
    with storage_errors(target):
        shutil.copyfile(folder / WEIGHTS_FILE, target / WEIGHTS_FILE)
    write_text(target / CONFIG, json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True))
    lay_tokenizer(source.folder, target)
    return str(named)


def _begun_with(source: Source) -> str | None:
    """The model of the Hub that the stage started from, where it did."""
    if source.artifact is None:
        return None
    for read in source.artifact.manifest["inputs"].get("model", []):
        if told := read.get("model"):
            return str(told["name"])
    return None


def _stage_before(source: Source) -> str:
    read = source.artifact.manifest["inputs"].get("model", []) if source.artifact else []
    return f"the model of stage {read[0]['name']}" if read else "a model that is not known"
