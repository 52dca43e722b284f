"""The report in a real browser: it draws itself, and asks nobody for anything."""

import html
import shutil
import socket
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_browser = pytest.mark.skipif(not BROWSER, reason="no chromium on this machine")


class Listener:
    """A proxy that passes nothing on: it only writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed: the test is over
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.asked.append(connection.recv(4096).decode("latin-1").split("\r\n")[0])
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def browse(page: Path, listener: Listener, scratch: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Open a page; everything that it fetches, loopback too, goes by way of the listener."""
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-sync",
        "--disable-extensions",
        "--disable-features=OptimizationHints,MediaRouter,Translate",
        f"--user-data-dir={scratch / 'profile'}",
        f"--proxy-server=http://{listener.address}",
        "--proxy-bypass-list=<-loopback>",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def asked_by_pages(listener: Listener) -> list[str]:
    """Without what the browser asks of its maker on its own account."""
    own = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
    return [line for line in listener.asked if not any(name in line for name in own)]


@needs_browser
def test_the_listener_hears_a_page_that_asks(listener, tmp_path):
    """Otherwise the next test would pass for nothing."""
    page = tmp_path / "asks.html"
    page.write_text('<img src="http://elsewhere.example/a.png"><script src="http://127.0.0.1:8099/b.js"></script>')
    browse(page, listener, tmp_path, "--dump-dom")
    assert any("elsewhere.example/a.png" in line for line in asked_by_pages(listener))
    assert any("127.0.0.1:8099/b.js" in line for line in asked_by_pages(listener))


@needs_browser
def test_the_report_draws_itself_and_asks_nobody(calm, listener, tmp_path):
    page = calm.folder / "report.html"
    picture = tmp_path / "page.png"
    shown = browse(page, listener, tmp_path, "--dump-dom")
    drawn = browse(page, listener, tmp_path, f"--screenshot={picture}", "--window-size=1200,1600")
    assert asked_by_pages(listener) == []
    for said in (shown.stderr, drawn.stderr):
        assert "Content Security Policy" not in said
        assert "Refused to" not in said
    text = html.unescape(shown.stdout)
    for word in ("sft_raw", "dpo", "truthfulness", "Training", "curated", "potstill chat", "<svg"):
        assert word in text, f"the page does not say {word!r}"
    assert different_bytes(picture) > 100, "the picture is blank"


@needs_browser
def test_a_blank_page_would_be_noticed(listener, tmp_path):
    page, picture = tmp_path / "blank.html", tmp_path / "blank.png"
    page.write_text("<body></body>")
    browse(page, listener, tmp_path, f"--screenshot={picture}", "--window-size=1200,1600")
    assert different_bytes(picture) < 10


def different_bytes(picture: Path) -> int:
    """How many different bytes the pixels of a PNG have, as they are filtered: few where nothing is drawn."""
    data, start, packed = picture.read_bytes(), 8, b""
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"IDAT":
            packed += data[start + 8 : start + 8 + length]
        start += length + 12
    return len(set(zlib.decompress(packed)))
