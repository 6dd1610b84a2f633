"""The page: what it draws and says, to whom it answers, and a click in a browser."""

import contextlib
import html
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from browser import chromium
from commands import status

from shallower import UserError, drop, open_model, prune
from shallower.anatomy.generation import Generation
from shallower.data.prompts import asked_by
from shallower.stages.variants import offers
from shallower.webapp.page import Page

gradio = pytest.importorskip("gradio")
from shallower.webapp.server import bound, web_server  # noqa: E402

WAIT = 60_000  # milliseconds
pytestmark = [  # of gradio's own making
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
]


@pytest.fixture(scope="module")
def page(saved, tmp_path_factory) -> Page:
    made = tmp_path_factory.mktemp("page") / "without"
    prune(saved("llama"), drop(saved("llama"), ["2", "3"]), out=made)
    model = open_model(saved("llama"))
    plan = tmp_path_factory.mktemp("plan") / "plan.json"
    status(
        "plan", saved("llama"), "--remove", 3, "--selection", "lowest", "--samples", 4, "--length", 16, "--out", plan
    )
    return Page(model, offers(model, [str(plan), str(made)]), 16)


@contextlib.contextmanager
def served(page: Page) -> Iterator[str]:
    """Where a page is served."""
    with bound(0) as listening:
        server = web_server(page, "tiny")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        started = time.monotonic()
        while not server.started and time.monotonic() - started < 30:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@contextlib.contextmanager
def opened(address: str, width: int, scheme: str) -> Iterator[Any]:
    """The page in a browser; afterwards nothing was fetched from elsewhere and the console was silent."""
    sync_api = pytest.importorskip("playwright.sync_api")
    said, fetched = [], []
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"the browser does not start here: {error}")
        shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: fetched.append(request.url))
        shown.goto(address)
        shown.wait_for_selector("#go")
        yield shown
        browser.close()
    assert said == []
    assert [url for url in fetched if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def address(page):
    with served(page) as found:
        yield found


def test_answers_grow_and_are_judged(page) -> None:
    """The pieces are the answer's text; the last picture tells what each model thinks of the other's tokens."""
    pictures = list(page.answers("The dog saw", "plan", 2, False, False, 12))
    first, last = pictures[0], pictures[-1]
    assert len(pictures) > 2 and "would write the same at" not in first[2] and "would write the same at" in last[3]
    lane_text = html.unescape(re.sub(r"<[^>]*>", "", last[1]))
    assert lane_text.strip() and "tokens/s" in last[2] and "cache" in last[3]
    assert page.drawn("plan", 2)[1].count("layers") and "nothing is left out" in page.drawn("plan", 0)[1]
    assert page.drawn("without", 7)[1] == page.drawn("without", 0)[1]  # a folder is one removal, wherever the slider is
    repaired = list(page.answers("The dog saw", "plan", 1, True, False, 4))
    assert "repair of what is left" in repaired[0][4] and "weights of its own" in repaired[-1][3]


def test_what_models_write_is_text_and_not_html(page, monkeypatch) -> None:
    monkeypatch.setattr(type(page.model.tokenizer), "decode", lambda *_, **__: "<img src=x onerror=alert(1)>")
    assert all("<img" not in part for picture in page.answers("a", "plan", 1, False, False, 2) for part in picture)


def test_it_answers_only_to_its_own_name(address) -> None:
    assert urllib.request.urlopen(address).status == 200
    for name in ("evil.example", "127.0.0.1.evil.example"):
        asked = urllib.request.Request(f"{address}/config", headers={"Host": name})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        assert refused.value.code == 400
    for path, headers in (
        ("config", {"Origin": "http://evil.example"}),
        ("gradio_api/queue/join", {"Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"}),
        ("gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=a"}),
        ("gradio_api/runs", {}),
        ("openapi.json", {}),
    ):
        method = "POST" if "Content-Type" in headers else "GET"
        asked = urllib.request.Request(f"{address}/{path}", b"{}" if method == "POST" else None, headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked)
        assert refused.value.code == 403, path


def test_two_pages_do_not_share_a_port() -> None:
    with bound(0) as listening, pytest.raises(UserError, match="cannot be served"):
        bound(listening.getsockname()[1])


def test_a_page_ends_though_an_answer_is_being_written(page) -> None:
    started = time.monotonic()
    with served(page) as address:
        stream = urllib.request.urlopen(f"{address}/gradio_api/heartbeat/abc")
        started = time.monotonic()
    assert time.monotonic() - started < 15
    stream.close()


def test_what_was_stopped_is_waited_for(page) -> None:
    """And said; afterwards the next answer is written."""
    first = page.answers("The dog saw", "plan", 2, False, False, 4)
    next(first)
    second = page.answers("The dog", "plan", 2, False, False, 2)
    assert "being ended" in next(second)[4]
    first.close()
    assert "would write the same" in [*second][-1][3]


@pytest.mark.parametrize("width", [390, 1400])
def test_a_click_in_a_browser(address, width, tmp_path) -> None:
    """Both answer, and the slider redraws the stack."""
    scheme = "dark" if width < 1000 else "light"
    with opened(address, width, scheme) as shown:
        shown.locator("#prompt textarea").fill("The dog saw the fox")
        shown.locator("#go").click()
        shown.wait_for_selector("#pruned-figures .legend", timeout=WAIT)
        assert shown.locator("#unpruned .answer").inner_text().strip()
        number = shown.locator("#amount input[type=number]")
        number.fill("3")
        number.press("Enter")
        shown.wait_for_function("document.querySelectorAll('#stack rect[stroke-dasharray]').length == 4", timeout=WAIT)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        dark = shown.evaluate("getComputedStyle(document.querySelector('#pruned .answer')).backgroundColor")
        assert (dark == "rgb(20, 24, 30)") == (scheme == "dark")
        shown.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_page_is_hardly_slower_than_the_model(smollm2) -> None:
    """The first token comes within a second of plain generation's, a step of the slider within 0.3 s."""
    page = Page(smollm2, offers(smollm2, []), 32)
    generation = Generation(smollm2.module, smollm2.tokenizer, longest=1)
    asked = asked_by("Why is the sky blue?", smollm2.tokenizer, chat=True)
    generation.answers([asked])
    started = time.monotonic()
    generation.answers([asked])
    plain = time.monotonic() - started
    with served(page) as address, opened(address, 1400, "light") as shown:
        shown.locator("#prompt textarea").fill("Why is the sky blue?")
        shown.wait_for_timeout(3000)  # as long as one needs to write that
        started = time.monotonic()
        shown.locator("#go").click()
        shown.wait_for_function(
            "document.querySelector('#unpruned .answer') && !document.querySelector('#unpruned .waits')"
        )
        first = time.monotonic() - started
        shown.wait_for_selector("#pruned-figures .legend", timeout=WAIT)
        number = shown.locator("#amount input[type=number]")
        number.fill("3")
        started = time.monotonic()
        number.press("Enter")
        shown.wait_for_function("document.querySelectorAll('#stack rect[stroke-dasharray]').length == 4", timeout=WAIT)
        step = time.monotonic() - started
    print(f"first token {first:.2f} s, of plain generation {plain:.2f} s; a step of the slider {step:.2f} s")
    assert first < plain + 1 and step < 0.3


def test_bad_input(saved, tmp_path, capsys, monkeypatch) -> None:
    model, other = saved("llama"), tmp_path / "other"
    plan = tmp_path / "plan.json"
    assert status("plan", saved("qwen2"), "--remove", 1, "--samples", 2, "--length", 16, "--out", plan) == 0
    prune(model, drop(model, ["2"]), out=other)
    (tmp_path / "text.txt").write_text("a")
    capsys.readouterr()
    busy = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr("webbrowser.get", lambda *_: (_ for _ in ()).throw(__import__("webbrowser").Error("none")))
    for arguments, message in (
        ((model, "--port", busy.getsockname()[1]), "cannot be served on"),
        ((model, "--port", 70000), "a port, 0 to 65535"),
        ((model, "--answer-tokens", 0), "1 token or more"),
        ((model, "--open"), "no browser is installed here"),
        ((model, plan, "--port", 0), "belongs to"),
        ((model, tmp_path / "text.txt", "--port", 0), "no artifact of ours"),
        ((model, saved("qwen2"), "--port", 0), "no shallower.json"),
        ((saved("qwen2"), other, "--port", 0), "belongs to"),
    ):
        assert status("app", *arguments) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("loading", "/"))]
        assert len(said) == 1 and said[0].startswith("error: ") and message in said[0], said
    busy.close()
    monkeypatch.setattr("shallower.stages.variants.total_memory", lambda _: 1 << 20)
    assert status("app", model, "--port", 0) == 2
    assert "needs" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert status("app", model) == 2
    assert "pip install 'shallower[app]'" in capsys.readouterr().err
