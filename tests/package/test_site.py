"""The documentation site: every page is in its nav, links lead somewhere, notes are complete, and it builds offline."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import browser
import pytest
import yaml
from pages import BLOCK, INLINE, PAGES, ROOT, text_of

from shallower import methods

LINK = re.compile(r"\]\(([^)\s]+)\)")
NOTES = {kind: tomllib.loads((ROOT / f"docs/notes/{kind}.toml").read_text(encoding="utf-8")) for kind in methods.KINDS}
BY_HAND = [
    "docs/index.md",
    "docs/choosing.md",
    "docs/gpu.md",
    "docs/adding.md",
    "docs/repair.md",
]  # with generated parts
BY_HAND += [f"docs/notes/{kind}.toml" for kind in NOTES]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    path = ROOT / page
    for link in LINK.findall(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", link):
            target, _, place = link.partition("#")
            aim = (path.parent / target) if target else path
            assert aim.exists(), f"{page}: {link}"
            if place and aim.suffix == ".md":
                heads = re.findall(r"^#+ (.+)$", aim.read_text(encoding="utf-8"), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
                assert place in slugs, f"{page}: {link} is none of {sorted(slugs)}"


def leaves(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for part in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(part)]


def test_the_nav_names_every_page() -> None:
    class Loader(yaml.SafeLoader):
        """Leaves what only mkdocs understands."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Loader)
    named = leaves(site["nav"])
    assert len(named) == len({*named})
    results = {f"results/{path.name}" for path in (ROOT / "benchmarks" / "results").glob("*.md")}
    project = {f"project/{name}.md" for name in ("README", "recipes", "CONTRIBUTING", "CHANGELOG")}
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {*named} == own | results | project


@pytest.mark.parametrize("kind", NOTES)
def test_every_method_has_its_notes(kind) -> None:
    assert {*NOTES[kind]} == {*methods.names(kind)}
    for name, note in NOTES[kind].items():
        assert note.keys() == {"origin", "when", "how"}, name
        said = " ".join(methods.find(kind, name).__doc__.split())
        assert ("our reconstruction" not in said) or ("reconstruction" in note["origin"]), name
        assert note["how"].startswith("shallower ") and name in note["how"], name


@pytest.mark.parametrize("page", BY_HAND)
def test_no_figure_is_written_by_hand(page) -> None:
    """Figures stand in generated parts; what a command or a rule says are whole numbers."""
    text = BLOCK.sub("", text_of(page))
    text = INLINE.sub("", re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", "", text, flags=re.S))
    text = re.sub(r"(?s)^how = \"\"\".*?\"\"\"", "", text, flags=re.M)
    assert not re.findall(r"\b\d+[.,]\d+|\bx \d|\d x\b|\d+ (?:seconds|minutes|tokens per)", text)


# ---------------------------------------------------------------- built


class Page(HTMLParser):
    """What a built page holds: anchors, links, and what a browser would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.fetched = {""}, [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(found.get("href", ""))
        elif "src" in found:
            self.fetched.append(found["src"])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site, built strictly."""
    if not importlib.util.find_spec("mkdocs"):
        pytest.skip("needs mkdocs-material: pip install '.[docs]'")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return site


def test_the_built_site_has_no_dead_link_and_fetches_nothing(built) -> None:
    pages = {path: Page(path) for path in built.rglob("*.html") if path.name != "404.html"}  # which a server shows
    assert len(pages) > 60
    for path, page in pages.items():
        for link in page.links:
            if not re.match(r"[a-z]+:|/$", link):
                target, _, place = unquote(link).partition("#")
                aim = (path.parent / target).resolve() if target else path
                assert aim.is_file(), f"{path.relative_to(built)}: {link}"
                assert aim not in pages or place in pages[aim].anchors, f"{path.relative_to(built)}: {link}"
        for source in page.fetched:
            assert not re.match(r"[a-z]*:?//", source), f"{path.relative_to(built)} fetches {source}"
            assert (path.parent / source.partition("?")[0]).is_file(), f"{path.relative_to(built)}: {source}"
    for sheet in built.rglob("*.css"):
        assert not re.search(r"url\(\W*(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_the_built_site_shows_what_the_pages_say(built) -> None:
    """Tables and lists are such, generated parts are filled, and no marker is left."""
    page = (built / "methods" / "criteria" / "taylor.html").read_text(encoding="utf-8")
    assert page.count("<table>") >= 4
    words = re.sub(r"<[^>]+>", "", page)
    assert "∂L_b/∂W" in words and "shallower score MODEL --criterion taylor" in words
    for path in built.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"<p>\s*(?:\||[-*] )|^\| ?-{3}|\n[-*] \*\*", text), (
            f"{path.relative_to(built)}: not rendered"
        )
        assert "NOT-ON-THE-SITE" not in text


@pytest.mark.slow
def test_the_search_works_from_the_disk(built, tmp_path) -> None:
    """Without a server and without a network, in a browser."""
    page = f"file://{built}/methods/criteria/gate.html?q=taylor"
    done = browser.run(tmp_path, "--virtual-time-budget=9000", "--dump-dom", page)
    assert re.search(r"md-search-result__meta\">\d+ matching documents", done.stdout)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
