"""The web app over HTTP."""

from __future__ import annotations

import ipaddress
import re
import socket as sockets
from collections.abc import Callable
from typing import Any

from ctf.app.studio import MOST_BYTES, Studio
from ctf.errors import InputError


def listen(host: str, port: int) -> sockets.socket:
    """A socket that listens. Raises InputError: no such address here, or somebody else listens there."""
    try:
        family = sockets.getaddrinfo(host, None, type=sockets.SOCK_STREAM)[0][0]
        return sockets.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or str(error)
        reason = said.partition(" (")[0]  # without the address, which is said anyway
        raise InputError(f"{host}:{port} cannot be listened on ({reason}): choose another --port or --host") from None


def checked_root_path(root_path: str) -> str:
    """A prefix such as "/ctf", without a slash at its end. Raises InputError: not the path of an address."""
    if not re.fullmatch(r"((/[\w.~-]+)+)?/?", root_path, re.ASCII):
        raise InputError(f"root_path {root_path!r}: give the path below which a proxy shows the web app, such as /ctf")
    return root_path.rstrip("/")


def application(studio: Studio, loopback: bool, root_path: str = "") -> Any:
    """The web app as an ASGI application, its first images made; `root_path` as `checked_root_path` gives it."""
    try:
        import fastapi
        import gradio
    except ImportError as error:
        raise InputError(f"the web app needs Gradio ({error}): pip install -e '.[app]' in a checkout of ctf") from None
    from ctf.app.gate import middleware
    from ctf.app.page import CSS, LONGEST_QUEUE, build

    page = build(studio)
    page.has_launched = True  # Gradio takes files from those that were uploaded only then, as `launch` sets it
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=2)
    font = ("system-ui", "sans-serif")
    theme = gradio.themes.Default(primary_hue="blue", font=font, font_mono=("ui-monospace", "monospace"))
    return gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None, middleware=middleware(loopback, root_path)),
        page,
        path="/",
        root_path=root_path,
        theme=theme,
        css=CSS,
        max_file_size=MOST_BYTES,
        show_error=True,
        ssr_mode=False,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
    )


def serve(
    studio: Studio,
    socket: sockets.socket,
    started: Callable[[str], None] = lambda address: None,
    root_path: str = "",
) -> None:
    """Serve the web app until Ctrl-C; `started` hears its address, `root_path` is as for `application`."""
    host, port = socket.getsockname()[:2]
    loopback = ipaddress.ip_address(host).is_loopback
    app = application(studio, loopback, root_path)
    import uvicorn  # only here: where it is missing, `application` says what to install

    started(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)).run(sockets=[socket])
