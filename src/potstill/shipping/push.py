"""`potstill push`: an export to the Hub. What would go is told first, and goes when it is said so."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.artifact import MANIFEST
from potstill.errors import DataError, ModelError, PotstillError, StorageError, reading
from potstill.shipping.folder import NOTE
from potstill.shipping.model_card import UNKNOWN
from potstill.shipping.source import HIDDEN
from potstill.shipping.whole import check_tensors

CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
NEVER = re.compile(
    r"journal\.sqlite.*|.*\.sqlite(-\w+)?|.*\.(pem|key|log|bin|pt|pth|pkl|ckpt)|\.env.*|\.netrc|id_(rsa|ed25519)|token|"
    r"(dropped|held_out|rows|curves|answers|observations)\.jsonl|run\.json|hashes\.json|times\.json"
)
"""Files of a run, of keys, or that whoever loads them would run."""
SECRETS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16})\b|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
)
TEXTS = (".md", ".json", ".yaml", ".yml", ".txt", ".jinja", ".jsonl", ".toml", ".py", ".parquet.json")
LARGEST_TEXT = 2_000_000
"""Bytes of a text that is looked through; tokenizers are larger and hold no paths that anyone wrote."""
CARD_LINES = 12


@dataclass(frozen=True)
class Parcel:
    """What would go where."""

    folder: Path
    repository: str
    kind: str
    """model or dataset."""
    private: bool
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes."""
    head: tuple[str, ...]
    """The card's first lines."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size in self.files)


@reading()
def pack(folder: Path, repository: str, *, private: bool) -> Parcel:
    """Look through a folder. DataError or StorageError where something is missing in it, or should not leave."""
    if not REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        what = "this is no name of a repository; expected OWNER/NAME of letters, digits, '-', '_' and '.'"
        raise DataError(repository[:100], what, "Name one such as me/my-model")
    if not folder.is_dir():
        raise StorageError(str(folder), "there is no such folder", "Make one with potstill export")
    _check_run(folder)
    front = _front(folder)
    files = tuple(_files(folder))
    _check_weights(folder, [name for name, _ in files])
    kind = "dataset" if "dataset_info" in front or "configs" in front else "model"
    head = (folder / CARD).read_text(encoding="utf-8").splitlines()[:CARD_LINES]
    return Parcel(folder, repository, kind, private, files, tuple(head))


def _check_run(folder: Path) -> None:
    """Runs and sealed artifacts stay at home: an export is made of them first."""
    if (folder / "run.json").exists() or (folder / "journal.sqlite").exists():
        raise DataError(
            str(folder), "this is a run's folder", "Make a folder of one model: potstill export RUN:MODEL --to DIR"
        )
    exported = (folder / NOTE).is_file()
    if (folder / MANIFEST).is_file() and not exported and not (folder / "data").is_dir():
        what = "this is a stage's sealed folder, which says of its run what is nobody's business"
        raise DataError(str(folder), what, "Make a folder of it first: potstill export RUN:MODEL --to DIR")


def _front(folder: Path) -> dict[str, Any]:
    """The card's front matter. DataError where there is no card, or no licence in it."""
    card = folder / CARD
    if not card.is_file():
        raise DataError(str(folder), f"there is no card ({CARD}) in it", "Make the folder with potstill export")
    found = FRONT.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        front = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(str(card), f"its front matter is no YAML: {str(error).splitlines()[0]}", "Mend it") from error
    if not isinstance(front, dict):
        raise DataError(str(card), "it begins with no front matter between two lines of ---", "Export it again")
    licence = front.get("license")
    named = front.get("license_name") if licence == "other" else licence
    if not named or named == UNKNOWN:
        what = "it names no licence, so nobody may use what you publish"
        raise DataError(str(card), what, "Export again with --licence, or write license: into its front matter")
    return front


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """What goes. DataError for a file that must not."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            raise DataError(
                str(path), "this is a link, and what it leads to may lie anywhere", "Put the file itself there"
            )
        if not path.is_file():
            raise DataError(str(path), "this is neither a file nor a folder", "Take it out of the folder")
        if NEVER.fullmatch(path.name) or path.name.startswith("."):
            raise DataError(str(path), "a file of this kind is never pushed", "Take it out of the folder")
        size = path.stat().st_size
        if path.suffix in TEXTS and size <= LARGEST_TEXT and not path.name.startswith("tokenizer"):
            _check_text(path)
        yield name, size


def _check_weights(folder: Path, names: Sequence[str]) -> None:
    """DataError or ModelError where an export has lost weights since it was made."""
    if not (folder / NOTE).is_file():
        return
    weights = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if not weights:
        raise DataError(str(folder), "there are no weights in this export any more", "Export it again")
    check_tensors([folder / name for name in weights if name.endswith(".safetensors")])


def _check_text(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if SECRETS.search(line):
            raise DataError(f"{path}:{number}", "this looks like a key", "Take it out, and have the key replaced")
        if path.suffix in (".md", ".json", ".yaml", ".yml") and (found := _own_path(line)):
            what = f"a path of this machine stands here: {found}"
            raise DataError(f"{path}:{number}", what, "Take it out of the file")


def _own_path(line: str) -> str:
    """A path that is there on this machine, or lies in somebody's home."""
    for found in HIDDEN.finditer(line):
        text = found[0]
        homes = ("/home/", "/Users/", "/root/", "~/", "C:\\Users")
        if text.startswith(homes) or (text.startswith("/") and Path(text).parent.exists()):
            return text[:100]
    return ""


def send(parcel: Parcel) -> str:
    """Make the repository where it is not there, and put the files into it, in one commit. Returns its address.

    ModelError, in one line, for whatever the Hub says.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    where = f"push to {parcel.repository}"
    try:
        made = api.create_repo(parcel.repository, repo_type=parcel.kind, private=parcel.private, exist_ok=True)
        names = [name for name, _ in parcel.files]
        api.upload_folder(
            repo_id=made.repo_id,
            repo_type=parcel.kind,
            folder_path=parcel.folder,
            allow_patterns=[_literally(name) for name in names],
            commit_message="potstill export",
        )
    except PotstillError:
        raise
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        remedy = "Log in with: hf auth login" if code in (401, 403) else "Look at the name, and try again"
        raise ModelError(where, f"the Hub refused (HTTP {code}): {_line(error)}", remedy) from error
    except Exception as error:  # below it are several libraries that raise what they like of a connection
        raise ModelError(where, f"it failed: {_line(error)}", "Look at the connection, and run it again") from error
    return str(made)


def _literally(name: str) -> str:
    """A file's name as a pattern that means nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
