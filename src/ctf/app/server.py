"""The web app over HTTP: a gate that lets in what it needs and nothing else, and the server behind it."""

from __future__ import annotations

import ipaddress
import json
import re
import socket as sockets
from collections.abc import Callable
from typing import Any

from ctf.app.studio import Studio
from ctf.errors import InputError

#: What a request may hold: an upload in base64, and some room.
MOST_BODY = 12 << 20
#: The addresses that the web app and its API need. Of Gradio's others, some write uploads to the disk, read files, or
#: fetch addresses for whoever asks.
OPEN = {
    "GET": r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|startup-events|theme\.css|app_id|queue/data|heartbeat/\w+|call/(v2/)?\w+/\w+)/?",
    "POST": r"/gradio_api/(queue/join|cancel|reset|call/(v2/)?\w+)/?",
}
#: The browser fetches nothing from elsewhere, whatever the web app asks for.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


class Gate:
    """ASGI middleware: refuses other addresses and methods, bodies that are large or that name files, and, on a server
    for this machine only, visits under another name (which a page elsewhere may have pointed here). A reverse proxy may
    leave its prefix `root_path` in an address or take it off."""

    def __init__(self, app: Callable[..., Any], loopback: bool, root_path: str = "") -> None:
        self.app, self.loopback, self.root_path = app, loopback, root_path

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if self.root_path and scope["path"].startswith(f"{self.root_path}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self.root_path)}
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.loopback and not LOOPBACK.fullmatch(host):
            await _refuse(send, 403, "this page is for the machine that it runs on")
        elif not re.fullmatch(OPEN.get(method, "(?!)"), scope["path"]):
            await _refuse(send, 404, "there is no such page")
        elif method == "GET":
            await self.app(scope, receive, _with_policy(send))
        else:
            body = bytearray()
            more = True
            while more and len(body) <= MOST_BODY:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message.get("body", b"")
                more = message.get("more_body", False)
            if len(body) > MOST_BODY:
                await _refuse(send, 413, f"a request may have {MOST_BODY >> 20} MiB")
            elif not _plain(body):
                await _refuse(send, 400, "give JSON without files: pictures come as data URLs, not as paths")
            else:
                await self.app(scope, _replayed(bytes(body), receive), send)


def _plain(body: bytearray) -> bool:
    """Whether a body is JSON in which nothing stands for a file: Gradio opens or fetches what does."""
    try:
        values = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if "path" in value or "meta" in value:
                return False
            values += value.values()
        elif isinstance(value, list):
            values += value
    return True


def _replayed(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    """A `receive` that gives a body which was read before."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again


def _with_policy(send: Callable[..., Any]) -> Callable[..., Any]:
    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = {b"content-security-policy": POLICY, b"referrer-policy": "no-referrer"}
            message["headers"] = [*message["headers"], *((name, text.encode()) for name, text in added.items())]
        await send(message)

    return sent


async def _refuse(send: Callable[..., Any], status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def listen(host: str, port: int) -> sockets.socket:
    """A socket that listens. Raises InputError: no such address here, or somebody else listens there."""
    if not 0 <= port < 1 << 16:  # larger ones would be taken for others, modulo 2^16
        raise InputError(f"port {port}: give one from 0 (any that is free) to 65535")
    try:
        family, _, _, _, address = sockets.getaddrinfo(host, port, type=sockets.SOCK_STREAM)[0]
        socket = sockets.socket(family)
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        socket.bind(address)
        socket.listen()
        return socket
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{host}:{port} cannot be listened on ({reason}): choose another --port or --host") from None


def checked_root_path(root_path: str) -> str:
    """A prefix such as "/ctf", without a slash at its end. Raises InputError: not the path of an address."""
    if not re.fullmatch(r"((/[\w.~-]+)+)?/?", root_path, re.ASCII):
        raise InputError(f"root_path {root_path!r}: give the path below which a proxy shows the web app, such as /ctf")
    return root_path.rstrip("/")


def application(studio: Studio, loopback: bool, root_path: str = "") -> Gate:
    """The web app as an ASGI application, its first images made; `root_path` as `checked_root_path` gives it."""
    try:
        import fastapi
        import gradio
    except ImportError as error:
        raise InputError(f"the web app needs Gradio ({error}): pip install -e '.[app]' in a checkout of ctf") from None
    from ctf.app.page import CSS, LONGEST_QUEUE, build

    page = build(studio)
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=2)
    font = ("system-ui", "sans-serif")
    theme = gradio.themes.Default(primary_hue="blue", font=font, font_mono=("ui-monospace", "monospace"))
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path="/",
        root_path=root_path,
        theme=theme,
        css=CSS,
        show_error=True,
        ssr_mode=False,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    return Gate(app, loopback, root_path)


def serve(
    studio: Studio,
    socket: sockets.socket,
    started: Callable[[str], None] = lambda address: None,
    root_path: str = "",
) -> None:
    """Serve the web app until Ctrl-C; `started` hears its address, `root_path` is as for `application`."""
    import uvicorn

    host, port = socket.getsockname()[:2]
    loopback = ipaddress.ip_address(host).is_loopback
    app = application(studio, loopback, root_path)
    started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[socket])
