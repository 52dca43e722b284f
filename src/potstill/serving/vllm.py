"""Handing a model over to vLLM, which answers far more at once than we do, where it is installed and a GPU is there."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import ModelError
from potstill.serving.protocol import MOST_LISTED
from potstill.sources import LocalModel, Model
from potstill.teachers.tool_calls import CALL
from potstill.training.models import choose_device, choose_precision, load_tokenizer, read_tokenizer

GET_IT = "Run pip install vllm on a machine with a GPU, or leave --engine away"
PARSER = "hermes"
"""How the default template writes calls."""


@dataclass(frozen=True)
class Place:
    """Where to listen, and who may ask."""

    host: str
    port: int
    key: str = ""


def vllm_command() -> list[str]:
    """How vLLM is started here; nothing where it is not installed."""
    beside = Path(sys.executable).with_name("vllm")
    if beside.exists():
        return [str(beside)]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    on_path = shutil.which("vllm")
    return [on_path] if on_path else []


def why_not_vllm(models: Mapping[str, Path]) -> str:
    """What speaks against it: "vLLM is not installed"; "" where it can be used."""
    if not vllm_command():
        return "vLLM is not installed"
    if choose_device().type != "cuda":
        return "vLLM needs a GPU, and none is here"
    return "vLLM serves one model a process, and several are named" if len(models) > 1 else ""


def serve_command(name: str, path: Path, place: Place) -> list[str]:
    """The command that serves a model as we would: its template, name and precision, no sampler nobody asked for."""
    model = Model(name, LocalModel(path=str(path)))
    own, template = read_tokenizer(model).chat_template, load_tokenizer(model).chat_template
    dtype = str(choose_precision("auto", choose_device())).removeprefix("torch.")
    command = [*vllm_command(), "serve", str(path), "--served-model-name", name]
    command += ["--host", place.host, "--port", str(place.port), "--dtype", dtype]
    command += ["--generation-config", "vllm", "--max-logprobs", str(MOST_LISTED)]
    if own != template:  # it came without one; what is given as text is taken as the template itself
        command += ["--chat-template", str(template)]
    if CALL in str(template):
        command += ["--enable-auto-tool-choice", "--tool-call-parser", PARSER]
    return command


def hand_over(models: Mapping[str, Path], place: Place) -> None:
    """Become vLLM. The key goes by the environment: anybody can read the arguments of a process."""
    if why := why_not_vllm(models):
        raise ModelError(
            "--engine vllm", why, GET_IT if "installed" in why else "Leave --engine away, or name one model"
        )
    ((name, path),) = models.items()
    command = serve_command(name, path, place)
    environment = {**os.environ, **({"VLLM_API_KEY": place.key} if place.key else {})}
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)
