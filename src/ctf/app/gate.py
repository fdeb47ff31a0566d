"""What the web app lets in: Starlette's middleware, and the addresses that the web app and its API need."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: What a request may hold: an upload in base64, and some room.
MOST_BODY = 12 << 20
#: Of Gradio's other addresses some read files, pass on what is elsewhere, or run ffmpeg, for whoever asks.
OPEN = {
    "GET": r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/.*"
    r"|/gradio_api/(info|startup-events|theme\.css|app_id|queue/data|upload_progress|heartbeat/\w+|call/(v2/)?\w+/\w+)/?",
    "POST": r"/gradio_api/(upload|queue/join|cancel|reset|call/(v2/)?\w+)/?",
}
#: The browser fetches nothing from elsewhere, whatever the web app asks for.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    "referrer-policy": "no-referrer",
}
#: The names of this machine, under which a server for it alone may be visited: a page elsewhere may point others here.
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


class Gate:
    """ASGI middleware: closes other addresses, takes only JSON and uploads, and sets `HEADERS`. A reverse proxy may
    leave its prefix `root_path` in an address or take it off."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http":
            method = scope["method"].replace("HEAD", "GET")
            path = re.sub(f"^{re.escape(self.root_path)}(?=/)", "", scope["path"])
            if not re.fullmatch(OPEN.get(method, "(?!)"), path):
                await PlainTextResponse("there is no such page", 404)(scope, receive, send)
                return
            kind = "multipart/form-data" if path.startswith("/gradio_api/upload") else "application/json"
            if method == "POST" and not Headers(scope=scope).get("content-type", "").startswith(kind):
                await PlainTextResponse(f"give {kind}", 415)(scope, receive, send)
                return
        if scope["type"] != "websocket":
            await self.app(scope, receive, sent)


def middleware(loopback: bool, root_path: str) -> list[Middleware]:
    """For FastAPI; `loopback`: visited under names of this machine only."""
    hosts = [Middleware(TrustedHostMiddleware, LOOPBACK)] if loopback else []
    return [*hosts, Middleware(RequestBodyLimitMiddleware, MOST_BODY), Middleware(Gate, root_path)]
