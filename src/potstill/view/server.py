"""The door: which requests are answered, with which headers, and the server that listens on this machine alone."""

import socket
from importlib.resources import files
from typing import Any

import uvicorn
from jinja2 import UndefinedError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill import __version__
from potstill.errors import PotstillError, StorageError
from potstill.runs.workspace import Workspace
from potstill.view.sections import SECTIONS
from potstill.view.site import Site

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]
"""Another name in a request's Host header is a page elsewhere that had its name resolved to this machine."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
ASSETS = {
    "style.css": ("potstill.reporting", "templates/style.css", "text/css"),
    "view.css": ("potstill.view", "static/view.css", "text/css"),
    "view.js": ("potstill.view", "static/view.js", "text/javascript"),
    "compare.js": ("potstill.reporting", "templates/compare.js", "text/javascript"),
    "htmx.js": ("potstill.view", "static/htmx.min.js", "text/javascript"),
}


class Headers:
    """Gives every response its headers, whoever made it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


class OwnForms:
    """Refuses what changes something unless a page of this server sent it, for a form elsewhere may name this address.

    Browsers say so in Sec-Fetch-Site; what an older one writes in Origin must be this address. Who says neither is
    refused too. Another port of this machine is another page.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            asked = Request(scope).headers
            own = f"{scope['scheme']}://{asked.get('host')}"
            if asked.get("sec-fetch-site", "same-origin" if asked.get("origin") == own else "none") != "same-origin":
                await PlainTextResponse("This was not sent by a page of this server.", 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


OF_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, UndefinedError)
"""What reading a file raises that holds anything but what it was sealed with."""


def make_app(workspace: Workspace) -> Starlette:
    """The pages of a run."""
    site = Site(workspace)
    site.sections = [(one.TITLE, one.PATH, getattr(one, "shown", lambda run: True)) for one in SECTIONS if one.TITLE]
    routes = [route for section in SECTIONS for route in section.routes(site)]
    wrong: Any = {PotstillError: site.error, OSError: _unreadable(site), 404: _nothing(site)}
    wrong |= dict.fromkeys(OF_DAMAGE, _damaged(site))
    return Starlette(
        routes=[Route("/static/{name}", _asset), *routes],
        middleware=[Middleware(Headers), Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(OwnForms)],
        exception_handlers=wrong,
    )


def _unreadable(site: Site) -> Any:
    def handle(request: Request, error: Exception) -> Response:
        where = str(getattr(error, "filename", None) or site.workspace.path)
        return site.error(request, StorageError(where, "it cannot be read", "Mend it or run its stage again"))

    return handle


def _damaged(site: Site) -> Any:
    """Files that were changed after they were sealed hold anything; `show` says of each file whether it was."""

    def handle(request: Request, error: Exception) -> Response:
        what = f"something that was read for this page is not as potstill writes it ({type(error).__name__}: {error})"
        return site.error(request, StorageError(str(site.workspace.path), what, "Find it: potstill show RUN STAGE"))

    return handle


def _nothing(site: Site) -> Any:
    def handle(request: Request, error: Exception) -> Response:
        return site.page(request, "page_error.html", 404, error="There is no such page.")

    return handle


def _asset(request: Request) -> Response:
    """A file of the package. Addresses carry the version, so that it may be kept for long."""
    name = request.path_params["name"]
    if name not in ASSETS:
        return PlainTextResponse("There is no such file.", 404)
    package, path, kind = ASSETS[name]
    data = files(package).joinpath(path).read_bytes()
    known = request.query_params.get("v") == __version__
    keep = "public, max-age=31536000, immutable" if known and "dev" not in __version__ else "no-cache"
    return Response(data, media_type=kind, headers={"Cache-Control": keep})


def listen(port: int) -> socket.socket:
    """A socket on this machine alone; port 0: any that is free. StorageError where the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()  # whoever is told the address may ask at once
    except OSError as error:
        listener.close()
        what = f"port {port} cannot be listened on: {(error.strerror or 'refused').lower()}"
        raise StorageError(f"{LOOPBACK}:{port}", what, "Choose another with --port, or leave it out") from error
    return listener


def serve(workspace: Workspace, listener: socket.socket) -> None:
    """Answer until Ctrl-C."""
    config = uvicorn.Config(
        make_app(workspace), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1,
        server_header=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])
