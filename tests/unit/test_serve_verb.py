"""The verb `serve`: which models are meant, who may ask, ports, and the hand-over to vLLM, by one that only records."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from engine import tiny_tokenizer
from starlette.responses import PlainTextResponse

from potstill.cli import main
from potstill.errors import BusyError, ModelError, StorageError
from potstill.runs import made
from potstill.runs.made import find_models
from potstill.serving import run as running
from potstill.serving import vllm
from potstill.serving.run import is_loopback, listen
from potstill.serving.vllm import Place, hand_over, serve_command, vllm_command, why_not_vllm
from potstill.tokens.tokenization import DEFAULT_TEMPLATE


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, r and q, whose models sft and dpo are sealed; r has one more that is not."""
    monkeypatch.chdir(tmp_path)
    for run in ("r", "q"):
        stages = {}
        for stage in ("sft", "dpo", *(["late"] if run == "r" else [])):
            folder = Path("runs") / run / "artifacts" / f"{stage}-1"
            stages[stage] = {"kind": "sft", "produces": "model", "folder": f"{stage}-1"}
            if stage == "late":
                continue
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            manifest = {"key": "k", "stage": stage, "produces": "model", "files": {}, "facts": {}}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        described = {"recipe": run, "source": "s", "overrides": [], "stages": stages}
        (Path("runs") / run / "run.json").write_text(json.dumps(described))
    return tmp_path


@pytest.fixture
def known(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is sealed is told by the manifest being there."""
    monkeypatch.setattr(made, "find", lambda folder: folder if (folder / "manifest.json").exists() else None)
    return runs


def folders(words: list[str]) -> dict[str, str]:
    return {name: path.as_posix() for name, path in find_models(words).items()}


def test_models_are_named_in_several_ways(known: Path) -> None:
    sft, dpo = "runs/r/artifacts/sft-1", "runs/r/artifacts/dpo-1"
    assert folders(["runs/r"]) == folders(["r"]) == {"dpo": dpo}
    assert folders(["r:sft"]) == {"sft": sft}
    assert folders(["r:dpo", "sft"]) == folders(["r", "r:sft"]) == {"dpo": dpo, "sft": sft}
    assert folders([sft]) == {"sft-1": sft}
    both = folders(["r:dpo", "runs/q:dpo", "sft"])
    assert both == {"r:dpo": dpo, "q:dpo": "runs/q/artifacts/dpo-1", "sft": "runs/q/artifacts/sft-1"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["r:dqo"], "did you mean 'dpo'?"),
        (["r:late"], "'late' is not sealed yet"),
        (["nothing"], "nothing"),
        (["r:dpo", "dpo"], "a second model is called 'r:dpo'"),
    ],
)
def test_a_word_that_names_no_model_is_one_line(
    known: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_others_may_ask_only_with_a_key_or_by_a_clear_word(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(running, "serve", lambda models, place, verbose: served.append(place))
    monkeypatch.setenv("GOOD_KEY", "sesame")
    monkeypatch.setenv("BAD_KEY", "ses\name")
    base = ["serve", "r:dpo", "--engine", "transformers"]
    for more, says in (
        (["--host", "0.0.0.0"], "no key is asked for"),
        (["--host", "0.0.0.0", "--api-key-env", "NO_KEY"], "NO_KEY is not set"),
        (["--api-key-env", "BAD_KEY"], "BAD_KEY holds a sign that no key has"),
    ):
        assert main([*base, *more]) == 2
        assert says in capsys.readouterr().err
    for more in ([], ["--host", "::1"], ["--host", "0.0.0.0", "--open"], ["--host", "x", "--api-key-env", "GOOD_KEY"]):
        assert main([*base, *more]) == 0
    assert [place.key for place in served] == ["", "", "", "sesame"]


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("x.de", False)],
)
def test_what_this_machine_alone_reaches(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


@pytest.mark.parametrize(
    ("place", "host", "key", "status"),
    [
        (Place("127.0.0.1", 1), "127.0.0.1:8000", "", 200),
        (Place("127.0.0.1", 1), "localhost", "", 200),
        (Place("::1", 1), "[::1]:8000", "", 200),
        (Place("127.0.0.2", 1), "127.0.0.2:8000", "", 200),
        (Place("127.0.0.1", 1), "evil.example", "", 400),
        (Place("127.0.0.1", 1, "sesame"), "proxy.example", "sesame", 200),
        (Place("0.0.0.0", 1), "box.example", "", 200),
        (Place("0.0.0.0", 1, "sesame"), "box.example", "sesami", 401),
        (Place("0.0.0.0", 1, "sesame"), "box.example", "", 401),
    ],
)
def test_who_is_let_in(place: Place, host: str, key: str, status: int) -> None:
    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    async def ask() -> int:
        headers = {"host": host, **({"authorization": f"Bearer {key}"} if key else {})}
        transport = httpx2.ASGITransport(app=running.guarded(fine, place))
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    assert asyncio.run(ask()) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://[::1]:3000", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        (None, 200),
    ],
)
def test_a_page_of_another_site_has_nothing_written(origin: str | None, status: int) -> None:
    async def fine(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    async def ask() -> int:
        headers = {"host": "localhost", **({} if origin is None else {"origin": origin})}
        transport = httpx2.ASGITransport(app=running.guarded(fine, Place("127.0.0.1", 1)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.post("/v1/chat/completions", headers=headers, content=b"{}")).status_code

    assert asyncio.run(ask()) == status


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BusyError, match=rf"127.0.0.1:{port}: .*already in use.*--port"):
            listen(Place("127.0.0.1", port))
    with pytest.raises((StorageError, BusyError)):
        listen(Place("no.such.host.invalid", 0))


# vLLM.


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `vllm` on the path that writes down what it was given, a GPU that is not there, and the record."""
    record, program = tmp_path / "record.json", tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ.get('VLLM_API_KEY')], open({str(record)!r}, 'w'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(vllm, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(vllm, "choose_precision", lambda name, device: torch.bfloat16)
    monkeypatch.setattr(vllm, "vllm_command", lambda: [str(program)])
    return record


def model(path: Path, template: str | None) -> Path:
    tokenizer = deepcopy(tiny_tokenizer())  # others have it too
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    (path / "config.json").write_text('{"model_type": "mistral"}')
    return path


def recorded(
    models: dict[str, Path], place: Place, record: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], str]:
    """What vLLM is given: the process that would become it runs it instead."""

    def become(program: str, command: list[str], environment: dict[str, str]) -> None:
        assert program == command[0]
        subprocess.run(command, env=environment, check=True)

    monkeypatch.setattr(os, "execvpe", become)
    hand_over(models, place)
    arguments, key = json.loads(record.read_text())
    return arguments, key


def test_vllm_is_given_the_models_name_template_and_precision(
    tmp_path: Path, recorder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path / "bare", None)
    arguments, key = recorded({"dpo": path}, Place("127.0.0.1", 8001), recorder, monkeypatch)
    assert arguments[:2] == ["serve", str(path)]
    flags = dict(zip(arguments[2:-1:2], arguments[3::2], strict=False))
    assert flags["--served-model-name"] == "dpo"
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "8001")
    assert flags["--generation-config"] == "vllm"
    assert flags["--dtype"] == "bfloat16"
    assert flags["--chat-template"] == DEFAULT_TEMPLATE  # the model came without one
    assert arguments[-3:] == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    assert key is None


def test_vllm_takes_the_models_own_template_and_the_key_from_the_environment(
    tmp_path: Path, recorder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path / "own", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    arguments, key = recorded({"dpo": path}, Place("0.0.0.0", 8000, "sesame"), recorder, monkeypatch)
    assert "--chat-template" not in arguments
    assert "--tool-call-parser" not in arguments
    assert key == "sesame"
    assert "sesame" not in arguments


def test_what_speaks_against_vllm_is_told(tmp_path: Path, recorder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"a": tmp_path, "b": tmp_path}
    assert why_not_vllm({"a": tmp_path}) == ""
    assert "one model a process" in why_not_vllm(models)
    with pytest.raises(ModelError, match="several are named"):
        hand_over(models, Place("127.0.0.1", 1))
    monkeypatch.setattr(vllm, "choose_device", lambda: torch.device("cpu"))
    assert "needs a GPU" in why_not_vllm({"a": tmp_path})
    monkeypatch.setattr(vllm, "vllm_command", list)
    assert why_not_vllm({"a": tmp_path}) == "vLLM is not installed"


def test_vllm_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if len(vllm_command()) > 0:
        pytest.skip("vLLM is installed here")
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert vllm_command() == [str(program)]


def test_auto_takes_transformers_where_vllm_cannot_be_and_says_why(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(running, "serve", lambda models, place, verbose: served.append(list(models)))
    monkeypatch.setattr(vllm, "vllm_command", list)
    assert main(["serve", "r:dpo", "sft"]) == 0
    assert served == [["dpo", "sft"]]
    assert "transformers answers: vLLM is not installed." in capsys.readouterr().err
    assert main(["serve", "r:dpo", "--engine", "vllm"]) == 2
    assert "pip install vllm" in capsys.readouterr().err
    assert serve_command is not None
