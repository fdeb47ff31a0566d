"""What the web app lets in: the requests that it needs and nothing else. It reads, fetches and writes no file."""

from __future__ import annotations

import json
import re

from starlette.datastructures import MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
}
#: The names of this machine, under which a server for it alone may be visited: a page elsewhere may point others here.
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


class Gate:
    """ASGI middleware: refuses other addresses and methods, and bodies that name files. A reverse proxy may leave its
    prefix `root_path` in an address or take it off."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        if self.root_path and scope["path"].startswith(f"{self.root_path}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self.root_path)}
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if not re.fullmatch(OPEN.get(method, "(?!)"), scope["path"]):
            await PlainTextResponse("there is no such page", 404)(scope, receive, send)
        elif method == "GET":
            await self.app(scope, receive, _with_policy(send))
        else:
            try:
                body = await Request(scope, receive).body()
            except ClientDisconnect:
                return
            if _plain(body):
                await self.app(scope, _replayed(body, receive), send)
            else:
                refusal = "give JSON without files: pictures come as data URLs, not as paths"
                await PlainTextResponse(refusal, 400)(scope, receive, send)


def _plain(body: bytes) -> bool:
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


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read before."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _with_policy(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sent


def gated(app: ASGIApp, loopback: bool, root_path: str = "") -> ASGIApp:
    """`app` behind the gate; `loopback`: visited under names of this machine only."""
    app = RequestBodyLimitMiddleware(Gate(app, root_path), MOST_BODY)
    return TrustedHostMiddleware(app, LOOPBACK) if loopback else app
