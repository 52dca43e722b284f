"""Listening: the socket, who may ask, what is logged, and an end that lets those under way finish."""

import contextlib
import hmac
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware

from potstill.errors import BusyError, StorageError, reason
from potstill.serving.app import Service, application
from potstill.serving.bodies import Json
from potstill.serving.engine import Engine
from potstill.serving.protocol import error_body
from potstill.serving.vllm import Place
from potstill.sources import LocalModel, Model
from potstill.teachers.local import LocalTeacher

GRACE_SECONDS = 30
"""How long answers under way may go on once it is told to end."""
KEEP_ALIVE_SECONDS = 75
NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
"""What this machine calls itself."""


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can ask."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(place: Place) -> socket.socket:
    """A socket at that place. BusyError where another program has it, StorageError where there is no such place."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((place.host, place.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"{place.host}:{place.port}"
        if isinstance(error, socket.gaierror):
            raise StorageError(where, "this machine has no such address", "Mend --host") from error
        raise BusyError(where, f"it cannot listen there: {reason(error)}", "Choose another --port or --host") from error
    return listener


class Gate:
    """Around the application: lets in who has the key, and writes a line of each request to standard error."""

    def __init__(self, app: Any, key: str = "", *, verbose: bool = False) -> None:
        self._app, self._key, self._verbose = app, key.encode(), verbose

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        scope.setdefault("state", {})

        async def sent(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await (self._app if self._may_enter(scope) else _no_key())(scope, receive, sent)
        finally:
            if self._verbose:
                _log(scope, status, time.monotonic() - began)

    def _may_enter(self, scope: Any) -> bool:
        if not self._key or scope["path"] == "/health":
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given.removeprefix(b"Bearer "), self._key)


def guarded(app: Any, place: Place, *, verbose: bool = False) -> Gate:
    """The application behind its gate. Where only this machine may ask, and without a key, no page in a browser reaches
    in by a name of its own that leads here."""
    if is_loopback(place.host) and not place.key:
        app = _OwnPages(TrustedHostMiddleware(app, [*NAMES, place.host]))
    return Gate(app, place.key, verbose=verbose)


class _OwnPages:
    """Refuses what a browser sends for a page of another site: it cannot read the answer, but could have it written."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        origin = dict(scope["headers"]).get(b"origin") if scope["type"] == "http" else None
        if origin is None or is_loopback(_host_of(origin)):
            await self._app(scope, receive, send)
            return
        what = "a page of another site asks; start the server with --api-key-env and send the key"
        await Json(error_body(what, "invalid_request_error", code="foreign_origin"), 403)(scope, receive, send)


def _host_of(origin: bytes) -> str:
    try:
        return urlsplit(origin.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _no_key() -> Json:
    what = "no key, or not the one that is asked for; send it as 'Authorization: Bearer KEY'"
    return Json(error_body(what, "invalid_request_error", code="invalid_api_key"), 401)


def _log(scope: Any, status: int, seconds: float) -> None:
    used = scope["state"].get("used", "")
    path = scope["path"][:200].encode("unicode_escape").decode()  # nobody writes a second line into the log
    parts = (time.strftime("%H:%M:%S"), scope["method"], path, str(status), used, f"{seconds:.2f} s")
    sys.stderr.write(" ".join(filter(None, parts)) + "\n")


@contextlib.contextmanager
def open_teachers(models: Mapping[str, Path]) -> Iterator[dict[str, LocalTeacher]]:
    """The models, loaded. ModelError where one cannot be."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(LocalTeacher(Model(name, LocalModel(path=str(path)))))
            for name, path in models.items()
        }


def serve(models: Mapping[str, Path], place: Place, *, verbose: bool = False) -> None:
    """Serve until a signal ends it: nobody new is let in, and what is under way has `GRACE_SECONDS` to finish."""
    with listen(place) as listener, open_teachers(models) as teachers, Engine(teachers) as engine:
        app = application(Service(teachers, engine, int(time.time())))
        config = uvicorn.Config(
            guarded(app, place, verbose=verbose),
            log_level="warning",
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        host = f"[{place.host}]" if ":" in place.host else place.host
        url = f"http://{host}:{listener.getsockname()[1]}/v1"
        sys.stdout.write(f"{', '.join(models)} at {url}; Ctrl-C ends it.\n")
        sys.stdout.flush()
        uvicorn.Server(config).run(sockets=[listener])
