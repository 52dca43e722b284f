"""`potstill push` against a Hub on loopback, by huggingface_hub itself: nothing goes unasked, all goes once."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shipped_models import Run, small

from potstill.shipping.export import Wish, export

TOKEN = "hf_" + "t" * 34


class Hub:
    """Creates repositories, says which files are large, takes those, and takes commits."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.refuse = 0

    def answer(self, method: str, path: str, body: bytes, token: str, url: str) -> tuple[int, object]:
        self.asked.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if self.refuse:
            return self.refuse, {"error": "no room"}
        if path == "/api/repos/create":
            told = json.loads(body)
            name = "/".join(filter(None, (told.get("organization"), told["name"])))
            self.repositories[name] = bool(told.get("private") or told.get("visibility") == "private")
            return 200, {"url": f"{url}/{name}", "name": name, "id": name}
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["size"] > 100_000 else "regular",
                      "shouldIgnore": False} for f in files]  # fmt: skip
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{url}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.startswith("/store/"):
            self.large[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    self.files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
                elif told["key"] == "lfsFile":
                    self.files[told["value"]["path"]] = self.large[told["value"]["oid"]]
            return 200, {
                "commitUrl": f"{url}/me/x/commit/{'c' * 40}",
                "commitOid": "c" * 40,
                "pullRequestUrl": None,
                "success": True,
            }
        return 200, {"id": "me/x", "sha": "c" * 40, "siblings": [], "private": True, "tags": [], "downloads": 0}


@pytest.fixture
def hub():
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                body = b"".join(parts)
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            token = self.headers.get("Authorization") or (f"Bearer {TOKEN}" if path.startswith("/store/") else "")
            status, found = told.answer(self.command, path, body, token, told.url)
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else text)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    root = tmp_path_factory.mktemp("push")
    run = Run(root / "run")
    run.add("base", "pretrain", "model", lambda folder: small(folder))
    export(f"{root / 'run'}:base", root / "out", Wish(licence="apache-2.0"))
    return root / "out"


def push(hub, tmp_path: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads where the Hub is as it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    env = {
        **kept,
        **names,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    line = [sys.executable, "-m", "potstill.cli", "push", *arguments]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_without_yes_nobody_is_asked_and_everything_is_told(hub, shipped, tmp_path):
    done = push(hub, tmp_path, str(shipped), "me/x")
    assert (done.returncode, hub.asked) == (0, [])
    assert "model repository me/x, private" in done.stdout
    for path in shipped.iterdir():
        assert f"{path.stat().st_size:,} bytes  {path.name}" in done.stdout
    assert "license: apache-2.0" in done.stdout
    assert "Nothing was sent" in done.stdout


def test_with_yes_every_file_is_there_byte_for_byte(hub, shipped, tmp_path):
    done = push(hub, tmp_path, str(shipped), "me/x", "--yes")
    assert done.returncode == 0, done.stderr
    assert hub.repositories == {"me/x": True}
    sent = {name: hashlib.sha256(data).hexdigest() for name, data in hub.files.items()}
    assert sent == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped.iterdir()}
    assert len(hub.large) == 1  # the weights
    assert f"It is there: {hub.url}/me/x" in done.stdout
    assert push(hub, tmp_path, str(shipped), "me/y", "--yes", "--public").returncode == 0
    assert hub.repositories["me/y"] is False


def test_refusals_are_one_line(hub, shipped, tmp_path):
    done = push(hub, tmp_path, str(shipped), "me/x", "--yes", token="hf_wrong")
    assert done.returncode == 2
    assert "HTTP 401" in done.stderr
    assert "hf auth login" in done.stderr
    assert (done.stderr.count("\n"), "Traceback" in done.stderr) == (1, False)
    assert hub.files == {}
    done = push(hub, tmp_path, f"{shipped.parent / 'run'}:base", "me/x", "--yes")
    assert done.returncode == 2
    assert "--licence" in done.stderr
    assert hub.files == {}


def test_a_model_of_a_run_is_exported_on_the_way(hub, shipped, tmp_path):
    done = push(hub, tmp_path, f"{shipped.parent / 'run'}:base", "me/named", "--yes", "--licence", "mit")
    assert done.returncode == 0, done.stderr
    assert b"# named" in hub.files["README.md"]
    assert b"license: mit" in hub.files["README.md"]
