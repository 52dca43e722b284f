"""What doctor finds: of endpoints that are dead, hostile or right, of keys, disk, memory and packages."""

import http.server
import json
import shutil
import socket
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from potstill import cli
from potstill.doctor import endpoints, machine, packages
from potstill.doctor.findings import Finding
from potstill.recipe import load_recipe
from potstill.runs import extras

KEY = "sk-secret-4711"


class Served(http.server.BaseHTTPRequestHandler):
    """Answers every request as the test says."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        self.server.answer(self)  # type: ignore[attr-defined]

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def server(answer: Any) -> Iterator[Any]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    made.daemon_threads = True
    made.answer, made.asked = answer, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def says(body: bytes, status: int = 200, **headers: str) -> Any:
    def answer(request: Any) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def lists(*names: str) -> Any:
    return says(json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode())


def drips(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(100):
        try:
            request.wfile.write(b" ")
            request.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def endless(request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        for _ in range(200):
            request.wfile.write(b"[" * (1 << 16))
    except OSError:
        return


def hangs(request: Any) -> None:
    time.sleep(2)


def found(tmp_path: Path, url: str, name: str = "big", key: str = "") -> list[Finding]:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a colour."}\n')
    key_env = f", key_env: {key}" if key else ""
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodels:\n  teacher: {{endpoint: '{url}', name: {name}{key_env}}}\nstages:\n"
        "  answers: {kind: sample, models: [teacher], prompts: prompts.jsonl}\n"
    )
    return list(endpoints.look(load_recipe(str(tmp_path / "r.yaml"))))


def address(made: Any) -> str:
    return f"http://127.0.0.1:{made.server_address[1]}/v1"


def test_an_endpoint_that_serves_the_model(tmp_path: Path) -> None:
    with server(lists("small", "big")) as made:
        (one,) = found(tmp_path, address(made))
    assert (one.state, made.asked) == ("ok", [("/v1/models", None)])


@pytest.mark.parametrize(
    ("answer", "state", "what"),
    [
        (lists("bigger"), "problem", "does not serve 'big' (did you mean 'bigger'?)"),
        (lists(), "problem", "it lists none"),
        (says(b"", 401), "problem", "refuses us (HTTP 401)"),
        (says(b"", 404), "note", "lists no models"),
        (says(b"oops", 500), "problem", "HTTP 500"),
        (says(b"<html>"), "problem", "something else than a list"),
        (says(b'{"data": [1]}'), "problem", "something else than a list"),
        (says(b"[" * 100_000), "problem", "something else than a list"),
        (says(b"", 302, Location="http://127.0.0.1:9/v1/models"), "problem", "HTTP 302"),
        (drips, "problem", "does not finish its answer"),
        (endless, "problem", "answers without end"),
        (hangs, "problem", "does not answer within"),
    ],
)
def test_an_endpoint_that_is_not_as_it_should_be(
    answer: Any, state: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "TIMEOUT_SECONDS", 1.0)
    with server(answer) as made:
        (one,) = found(tmp_path, address(made))
    assert one.state == state
    assert what in one.what
    assert one.remedy or state == "note"
    assert len(made.asked) == 1


def test_a_dead_endpoint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (one,) = found(tmp_path, f"http://127.0.0.1:{port}/v1")
    assert one.state == "problem"
    assert "cannot be reached" in one.what
    assert "Start the server" in one.remedy


def test_a_key_is_sent_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCTOR_KEY", KEY)
    with server(says(KEY.encode(), 401)) as made:
        key, one = found(tmp_path, address(made), key="DOCTOR_KEY")
        code = cli.main(["doctor", str(tmp_path / "r.yaml"), "--quick", "--json", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert key.state == "ok"
    assert one.remedy == "Correct the key in DOCTOR_KEY"
    assert {authorization for _, authorization in made.asked} == {f"Bearer {KEY}"}
    assert code == 2
    assert json.loads(shown)["problems"] >= 1
    assert KEY not in shown + key.what + one.what


@pytest.mark.parametrize(("value", "what"), [(None, "is not set"), ("two\nlines", "holds a line break")])
def test_a_key_that_is_none(value: str | None, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCTOR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("DOCTOR_KEY", value)
    with server(lists("big")) as made:
        key, _ = found(tmp_path, address(made), key="DOCTOR_KEY")
    assert key.state == "problem"
    assert what in key.what
    assert "two" not in key.what
    assert made.asked == [("/v1/models", None)]


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("free", "state"), [(1 << 20, "problem"), (10 << 30, "note"), (500 << 30, "ok")])
def test_little_disk(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    one = machine._disk(tmp_path / "not" / "there")
    assert one.state == state
    assert bool(one.remedy) == (state != "ok")


def test_what_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("536870912\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    memory, cores = machine._memory(), machine._cores()
    assert memory.state == "note"
    assert "512 MiB of 1.0 GiB are free (the container's limit)" in memory.what
    assert "OMP_NUM_THREADS=1" in cores.remedy


def test_a_driver_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [one.state for one in machine._gpus()] == ["problem"]
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 81008, 570.86.15'\n")
    (one,) = machine._gpus()
    assert one.what == "NVIDIA H100 80GB HBM3, 81008 of 81559 MiB free, driver 570.86.15"
    smi.unlink()
    assert [one.state for one in machine._gpus()] == ["note"]


def test_how_it_stands_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*machine.OFFLINE, *machine.PROXIES, *map(str.lower, machine.PROXIES)):
        monkeypatch.delenv(name, raising=False)
    assert ["are fetched" in one.what for one in machine._network()] == [True]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:1")
    offline, proxy = machine._network()
    assert "HF_HUB_OFFLINE is set" in offline.what
    assert "HTTPS_PROXY" in proxy.what
    assert "secret" not in proxy.what


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"numpy": "1.0", "rich": "14.0"}
    monkeypatch.setattr(packages, "_version", there.get)
    asked = [Requirement(line) for line in ("numpy>=1.26", "rich>=13", "nothing-here>=2")]
    old, missing, fine = packages._needed(asked)
    assert (old.state, old.what) == ("problem", "1.0 is here; expected >=1.26")
    assert old.remedy == "Run pip install 'numpy>=1.26'"
    assert (missing.state, fine.state) == ("problem", "ok")
    assert packages._optional(Requirement("bitsandbytes>=0.5"), "qlora", "x").state == "note"
    there["bitsandbytes"] = "0.1"
    assert packages._optional(Requirement("bitsandbytes>=0.5"), "qlora", "x").state == "problem"


def test_what_a_recipe_needs_beside_is_a_problem_where_it_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan is made without it, and says so; a run does not begin."""
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n  rows: {kind: import, hub: some/rows, rows: chats, expected_rows: 10}\n"
    )
    recipe = [str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (found,) = packages.look_for(load_recipe(recipe[0]))
    assert (found.state, found.about) == ("problem", "stage rows")
    assert (found.what, found.remedy) == (
        "it needs datasets, which is not installed", "Run pip install 'potstill[hub]'"
    )  # fmt: skip
    assert cli.main(["plan", *recipe]) == 0
    assert "rows needs datasets, which is not installed" in capsys.readouterr().out
    assert cli.main(["run", *recipe]) == 2
    assert "stages.rows: it needs datasets" in capsys.readouterr().err
    monkeypatch.setattr(extras, "find_spec", lambda name: True)
    assert list(packages.look_for(load_recipe(recipe[0]))) == []


def test_a_model_of_the_hub_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Q", "chosen": "A", "rejected": "B"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodels:\n  a: {path: someone/nothing}\nstages:\n  one: {kind: dpo, model: a, data: rows.jsonl}\n"
    )
    recipe = load_recipe(str(tmp_path / "r.yaml"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert [one.state for one in endpoints.look(recipe)] == ["note"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [one.state for one in endpoints.look(recipe)] == ["problem"]


def test_a_recipe_that_cannot_be_read_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nstages:\n  a: {kind: words}\n")
    assert cli.main(["doctor", str(tmp_path / "r.yaml"), "--quick", "--out", str(tmp_path)]) == 2
    assert "words" in capsys.readouterr().out


def test_torch_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from potstill.training import speed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(speed, "matrix_peak", lambda device, dtype: 2e12)
    told = {one.about: one for one in machine.look_with_torch()}
    assert "torch" not in told
    assert told["device"].what.startswith("cpu is taken")
    assert told["attention"].what.startswith("rows")
    assert told["speed"].what.startswith("2 TFLOP/s")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert next(iter(machine.look_with_torch())).state == "problem"


def test_quick_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from potstill import cli\n"
        f"cli.main(['doctor', '--quick', '--json', '--out', {str(tmp_path)!r}])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"
    assert {"python", "disk", "memory"} <= {one["about"] for one in json.loads(done.stdout)["findings"]}
