"""Server of the page: on 127.0.0.1 alone, to pages that were opened there, without analytics or a link to share."""

import importlib
import importlib.util
import inspect
import os
import socket
import webbrowser
from collections.abc import Sequence
from threading import Timer
from typing import Any

from ..errors import UserError
from ..runtime.progress import say, stdout
from ..settings.compute import Compute
from ..settings.fields import check_spent, settings_from
from ..settings.page import PageSettings
from ..stages.variants import offers, open_for_variants
from ..walk.run import load_weights
from .page import Page

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]  # by which a page may be asked for: another name's page must not reach this one
CLOSED = ("/gradio_api/upload", "/gradio_api/runs", "/openapi.json", "/docs", "/redoc")  # what the page does not need
OPEN_AFTER, END_SECONDS = 1.0, 1


def app(
    model: str,
    given: Sequence[str] = (),
    *,
    settings: PageSettings | None = None,
    compute: Compute | None = None,
    **plain: Any,
) -> None:
    """Serve a page on which a model and pruned ones within it answer side by side, until it is interrupted.

    Example: ``shallower.app("my-model", ["plan.json", "repaired"])``.

    Args:
        model: the unpruned model; a folder that was pruned, given alone, brings the one that it was made from.
        given: plans, scores, and folders made from the model; none: half of the layers by block influence.
    Raises:
        UserError: gradio is missing, the port is in use, there is no browser to open, the model does not fit into
            memory, or something given belongs to another model.
    """
    settings = settings_from(PageSettings, settings, plain, "settings")
    compute = settings_from(Compute, compute, plain, "compute")
    check_spent(plain, (PageSettings, Compute), "app")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'shallower[app]'")
    if settings.open:
        _check_browser()
    with bound(settings.port) as listening:
        address = f"http://{HOST}:{listening.getsockname()[1]}"
        dense, sources = open_for_variants(str(model), given, compute)
        load_weights(dense)
        page = Page(dense, offers(dense, sources), settings.answer_tokens)
        server = web_server(page, dense.checkpoint.source.rstrip("/").rpartition("/")[2])
        print(f"{address} (Ctrl-C ends it)", file=stdout(), flush=True)
        if settings.open:
            Timer(OPEN_AFTER, webbrowser.open, [address]).start()
        server.run(sockets=[listening])
        say("ended")


def bound(port: int) -> socket.socket:
    """A socket of this machine alone.

    Raises:
        UserError: the port is in use, or may not be taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # at once: while the model is loaded nobody else may take the port
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise UserError(
            f"it cannot be served on ({why}): give another, or 0 for any that is free", port=port
        ) from error
    return listening


def _check_browser() -> None:
    try:
        webbrowser.get()
    except webbrowser.Error as error:
        why = "no browser is installed here: leave it out, and open the address that is printed, on this machine or"
        raise UserError(f"{why} through ssh -L", open=True) from error


def web_server(page: Page, title: str) -> Any:
    """A server of the page that is not running yet; it answers only where it is asked for by its own name."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gradio, fastapi, uvicorn = (importlib.import_module(name) for name in ("gradio", "fastapi", "uvicorn"))
    hosts = importlib.import_module("starlette.middleware.trustedhost")
    blocks = importlib.import_module(f"{__package__}.blocks")
    looks = importlib.import_module(f"{__package__}.looks")
    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    outer.add_middleware(OwnPage)
    outer.add_middleware(hosts.TrustedHostMiddleware, allowed_hosts=NAMES)
    laid = blocks.layout(page, title)
    how = {"theme": blocks.theme(), "css": looks.style(), "footer_links": [], "ssr_mode": False, "server_name": HOST}
    if "run_history" in inspect.signature(gradio.mount_gradio_app).parameters:
        how["run_history"] = False
    outer = gradio.mount_gradio_app(outer, laid, path="/", show_error=True, **how)
    ending = {"timeout_graceful_shutdown": END_SECONDS}  # streams of answers are cut then
    return uvicorn.Server(uvicorn.Config(outer, log_level="error", access_log=False, **ending))


class OwnPage:
    """ASGI middleware that lets only the page itself ask: not the pages of others that are open in the same browser,
    and nobody for what the page does not need.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        origin = headers.get(b"origin")
        foreign = headers.get(b"sec-fetch-site") in ("cross-site", "same-site") and scope.get("method") != "GET"
        foreign |= origin is not None and origin.partition("://")[2] != headers.get(b"host")
        if scope["type"] == "websocket":  # the page uses none
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http" and (foreign or scope["path"].startswith(CLOSED)):
            response = importlib.import_module("starlette.responses").PlainTextResponse("not from here", 403)
            await response(scope, receive, send)
            return
        await self.app(scope, receive, send)
