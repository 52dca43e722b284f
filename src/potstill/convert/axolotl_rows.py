"""The data sets of an axolotl config: each type's columns, as potstill's shapes know them."""

from collections.abc import Iterator, Mapping
from typing import Any

from potstill.convert.account import Account
from potstill.convert.rows import Rows, apart
from potstill.convert.templates import NAMED
from potstill.document import Steps
from potstill.errors import RecipeError

FIELDS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output", "field_system": "system",
    "field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected", "field_completion": "completion",
    "field_label": "label",
}  # fmt: skip
"""Names that a type gives to columns, and what potstill's shapes call those."""
TEXTS = ("completion", "pretrain", "pretraining", "text")
TURNS_OF_OTHERS = {"from": "value"}
"""ShareGPT's names of a turn's role and words."""
LEFT = {
    "rows are read whole; `limit`, `skip` and `shuffle` of import cut them": "shards shards_idx preprocess_shards",
    "code that comes with a data set is not run": "trust_remote_code",
    "potstill's own words stand between the parts; a file of yours can hold the prompt ready-made": "format "
    "no_input_format system_format system_prompt prompt_format chosen_format rejected_format completion_format "
    "prompt_style input_format",
    "whole turns of the assistant are learnt, or none (train: false in a row's message)": "message_field_training "
    "message_field_training_detail",
    "the rows' own system turns stay": "drop_system_message",
    "distributions of a file are not read; see the stage `capture`": "logprobs_field temperature",
}
OURS = {
    "roles are told by their usual names": "roles field_human field_model",
    "assistants are learnt, with the token that ends each turn": "roles_to_train train_on_eos train_on_eot",
    "the file's name says it": "ds_type",
    "tools are read where a row has them": "field_tools",
    "thoughts stand in <think> tags": "split_thinking field_thinking template_thinking_key",
}


def datasets(account: Account, kind: str) -> tuple[list[Rows], list[Rows], list[str]]:
    """What is trained on, what is held out, and the templates that the sets name. RecipeError where there is none."""
    templates: list[str] = []
    found = [*_all(account, "datasets", kind, templates, test=False)]
    found += _all(account, "test_datasets", kind, templates, test=True)
    train, tests = apart(found)
    if not train:
        what = "it names no data sets"
        raise RecipeError(account.document.name, what, "Write those that it was trained on under 'datasets'")
    return train, tests, templates


def _all(account: Account, key: str, kind: str, templates: list[str], *, test: bool) -> Iterator[Rows]:
    for place, one in enumerate(account.get(key, [])):
        at: Steps = (key, place)
        if not isinstance(one, dict) or not one.get("path"):
            where = account.document.place(at)
            raise RecipeError(where, f"{key}.{place} has no path", "Write {path: ..., type: ...}")
        yield from _sources(account, at, one, kind, templates, test=test)


def _sources(
    account: Account, at: Steps, one: Mapping[str, Any], kind: str, templates: list[str], *, test: bool
) -> Iterator[Rows]:
    shape, columns, why = _read_type(account, at, one, kind, templates)
    files = one.get("data_files")
    names = [str(one["path"])] if not files else [files] if isinstance(files, str) else list(files)
    for key in ("path", "data_files", "split", "name", "revision"):
        account.note((*at, key), "carried", "a stage of kind import")
    for words, keys in OURS.items():
        for key in keys.split():
            account.note((*at, key), "ours", words)
    for words, keys in LEFT.items():
        for key in keys.split():
            account.note((*at, key), "left" if one.get(key) else "ours", words)
    for name in names:
        yield Rows(
            str(name), kind, split=str(one.get("split") or "train"), subset=one.get("name"),
            revision=one.get("revision"),
            format=shape, columns=columns, test=test, why=why,
        )  # fmt: skip


def _read_type(
    account: Account, at: Steps, one: Mapping[str, Any], kind: str, templates: list[str]
) -> tuple[str, dict[str, str], str]:
    """The shape to read, the columns by potstill's names, and a comment."""
    asked = one.get("type")
    fields = {**one, **asked} if isinstance(asked, dict) else dict(one)
    columns = {ours: str(fields[theirs]) for theirs, ours in FIELDS.items() if fields.get(theirs)}
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    for key in FIELDS:
        account.note((*at, key), "carried", "columns of import")
        if isinstance(asked, dict):
            account.note((*at, "type", key), "carried", "columns of import")
    if isinstance(asked, dict):
        for words, keys in LEFT.items():
            for key in keys.split():
                account.note((*at, "type", key), "left" if asked.get(key) else "ours", words)
        account.note((*at, "type", "field"), "left", "plain text is for the stage `pretrain`")
        return "auto", columns, ""
    word = str(asked or "")
    if word.split(":")[0].split(".")[0] in TEXTS:
        what = f"type: {word} is plain text, and {kind} are wanted"
        raise RecipeError(account.document.place((*at, "type")), what, "Plain text is for the stage `pretrain`")
    _named_template(account, at, one, word, templates)
    return _shape(account, at, fields, word, kind, columns)


def _named_template(account: Account, at: Steps, one: Mapping[str, Any], word: str, templates: list[str]) -> None:
    """A set's own template, or the one that its type names: chatml.intel."""
    named = one.get("chat_template") or one.get("conversation") or word.partition(".")[0]
    if named in NAMED:
        templates.append(str(named))
    for key in ("chat_template", "conversation"):
        known = one.get(key) in NAMED or str(one.get(key)).startswith("tokenizer_default")
        words = "the template of the stage that trains" if known else "not known here; set template"
        account.note((*at, key), "carried" if known else "left", words)
    account.note((*at, "chat_template_jinja"), "left", "one template for all rows: set template of the stage")


def _shape(
    account: Account, at: Steps, fields: Mapping[str, Any], word: str, kind: str, columns: dict[str, str]
) -> tuple[str, dict[str, str], str]:
    """By the type's word. What it does not tell, the columns of the first rows do."""
    names = fields.get("message_property_mappings") or {}
    role = fields.get("message_field_role") or names.get("role") or "role"
    words = fields.get("message_field_content") or names.get("content") or "content"
    for key in ("message_field_role", "message_field_content", "message_property_mappings"):
        usual = (role, words) in (("role", "content"), ("from", "value"))
        told = "told by the turns themselves" if usual else "turns have role and content, or from and value"
        account.note((*at, key), "ours" if usual else "left", told)
    field = fields.get("field_messages") or (fields.get("field") if word.startswith("sharegpt") else None)
    account.note((*at, "field_messages"), "carried", "columns of import")
    account.note((*at, "field"), "carried", "columns of import")
    shape = "auto"
    if word.startswith("sharegpt") or TURNS_OF_OTHERS.get(str(role)) == words:
        shape = "sharegpt"
        if field and field != "conversations":
            columns["conversations"] = str(field)
    elif word.startswith("chat_template") and kind == "chats" and field and field != "messages":
        columns["messages"] = str(field)
        shape = "messages"
    elif word.startswith("alpaca"):
        shape = "alpaca"
    known = shape != "auto" or word.startswith(("chat_template", "chatml", "llama3", "zephyr"))
    account.note((*at, "type"), "carried" if known else "ours", "" if known else "the shape is told by the columns")
    why = "" if known or not word else f"type: {word} there; here the shape is told by the columns"
    return shape if kind == "chats" else "auto", columns, why
