"""`potstill export`: one model, in the format that is asked for, whole in a folder with its card."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from potstill import __version__
from potstill.artifact import ROWS_FILE, storage_errors
from potstill.errors import ModelError, reading
from potstill.shipping.folder import whole_folder, write_note, write_text
from potstill.shipping.hub import lay_model
from potstill.shipping.model_card import RECIPE_FILE, UNKNOWN, Said, render
from potstill.shipping.source import Source, check_sound, read_source
from potstill.shipping.whole import check_model

Format = Literal["hub", "gguf", "adapter"]
CARD = "README.md"
PROMPTS = 8
"""Prompts whose answers are compared with llama.cpp's."""
ALIKE = 1e-3
"""Nats a token, far above what the order of sums can do in float32."""
SHORT = 2_000
"""Characters of a prompt that is taken for that."""
QUESTIONS = ("Name three colours.", "What is 12 times 7?", "Write a line about the sea.", "Who are you?")
"""Asked where the run holds no prompts."""


@dataclass(frozen=True)
class Wish:
    """What is asked for."""

    format: Format = "hub"
    gguf_type: str = "f16"
    title: str = ""
    licence: str = ""
    languages: tuple[str, ...] = ()
    notes: str = ""
    base: str | None = None
    overwrite: bool = False


def export(target: str, to: Path, wish: Wish) -> list[str]:
    """Make the folder; returns what there is to say of it, in sentences. Refusals are one line each."""
    source = read_source(target)
    check_model(source.folder)
    check_sound(source.folder)
    said = Said(wish.title or source.name, wish.licence or UNKNOWN, wish.languages, wish.notes, wish.format)
    with whole_folder(to, overwrite=wish.overwrite) as draft, reading():
        said = _fill(source, draft, wish, said)
        if source.recipe:
            write_text(draft / RECIPE_FILE, source.recipe)
        write_text(draft / CARD, render(said, source))
        write_note(draft, _note(source, wish, said))
        _readable(draft)
    return list(said.found)


def _fill(source: Source, draft: Path, wish: Wish, said: Said) -> Said:
    """Everything but the card; what the card is to say of it."""
    if wish.format == "adapter":
        from potstill.shipping.adapters import lay_adapter

        return replace(said, base=lay_adapter(source, draft, wish.base))
    if wish.format == "gguf":
        return _gguf(source, draft, wish, said)
    lay_model(source.folder, draft)
    return said


def _gguf(source: Source, draft: Path, wish: Wish, said: Said) -> Said:
    from potstill.shipping.gguf_file import Naming, write_gguf
    from potstill.shipping.measured import has_llama, measure
    from potstill.shipping.twin import HARD

    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in said.title).strip("-.") or "model"
    name = f"{plain}-{wish.gguf_type}.gguf"
    naming = Naming(said.title, wish.licence, said.languages)
    written = write_gguf(source.folder, draft / name, wish.gguf_type, naming)
    found = [f"Its tokens are what llama.cpp's rules make of {len(HARD)} hard texts, and of hundreds that were drawn."]
    if has_llama():
        agreement = measure(source.folder, written.path, *_material(source, HARD))
        if wish.gguf_type == "f32" and agreement.kl > ALIKE:
            what = f"in float32 too llama.cpp computes something else than transformers: {agreement.told()}"
            raise ModelError(f"model {source.name}", what, "Export it with --format hub, and report this")
        found.append(agreement.told())
    else:
        found.append("llama-cpp-python is not installed here, so llama.cpp itself was not asked.")
    return replace(said, files=(name,), found=(f"The weights are in {wish.gguf_type}.", *found, *written.notes))


def _material(source: Source, hard: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """Prompts as tokens, and texts: what the run holds, or a few questions."""
    from potstill.records import Message
    from potstill.sources import LocalModel, Model
    from potstill.tokens.tokenization import encode_prompt, render
    from potstill.training.models import load_tokenizer

    tokenizer = load_tokenizer(Model(source.name, LocalModel(path=str(source.folder))))
    asked = list(islice(_prompts(source), PROMPTS)) or list(QUESTIONS)
    chats = [[Message(role="user", content=text)] for text in asked]
    opening = "" if tokenizer.bos_token is None else str(tokenizer.bos_token)
    texts = [render(tokenizer, chat, answer_next=True) for chat in chats] + [opening + text for text in hard]
    return [encode_prompt(tokenizer, chat) for chat in chats], texts


def _prompts(source: Source) -> Iterator[str]:
    """First user turns of the rows nearest to the model."""
    seen: set[str] = set()
    for artifact in reversed(source.lineage):
        file = artifact.path / ROWS_FILE
        if artifact.produces not in ("prompts", "chats", "pairs") or not file.is_file():
            continue
        with file.open(encoding="utf-8") as lines:
            for line in islice(lines, 4 * PROMPTS):
                row = json.loads(line)
                turns = row.get("prompt") or row.get("messages") or []
                text = next((str(turn["content"]) for turn in turns if turn["role"] == "user"), "")
                if text and len(text) <= SHORT and text not in seen:
                    seen.add(text)
                    yield text


def _note(source: Source, wish: Wish, said: Said) -> dict[str, Any]:
    return {
        "potstill": __version__,
        "format": wish.format,
        "model": source.name,
        "key": source.artifact.key if source.artifact else None,
        "licence": said.licence,
        **({"gguf_type": wish.gguf_type} if wish.format == "gguf" else {}),
        **({"base": said.base} if said.base else {}),
    }


def _readable(folder: Path) -> None:
    """Files have the permissions of any that the user makes; safetensors and copies may have fewer."""
    with storage_errors(folder):
        probe = folder / ".probe"
        probe.touch()
        mode = probe.stat().st_mode & 0o777
        probe.unlink()
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(mode)
