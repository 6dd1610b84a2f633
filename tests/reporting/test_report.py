"""The report: what is in it, that it is a function of the artifacts, what it refuses, and what a browser
makes of it.
"""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import artifacts_by_hand as hand
import browser
import pytest
from commands import status
from jinja2 import StrictUndefined, UndefinedError

from shallower import UserError, report
from shallower.artifacts import ComparedModel, Comparison, Evaluation, save
from shallower.reporting.canvas import Drawing, Scale
from shallower.reporting.html import TEMPLATES
from shallower.reporting.page import Text
from shallower.results import collection
from shallower.results.summary import Summary
from shallower.runtime.format import short
from shallower.runtime.provenance import safe_command

FIGURES = {"stack", "importance", "sweep", "repair", "tasks", "speed"}
VOID = {"meta", "rect", "circle", "polyline", "br", "img"}


class Parsed(HTMLParser):
    """The page's text, its tags and their attributes; fails where an element is not closed."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.names, self.open = "", [], set(), []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data.replace("\u00a0", " ") + " "


@pytest.fixture
def folder(tmp_path) -> Path:
    """Artifacts of every kind, and files that are none."""
    hand.write(tmp_path / "run", hand.everything())
    for name, content in {
        "config.json": '{"model_type": "llama"}',
        "tokenizer.json": '{"kind": ["kind"], "schema": 3}',
        "broken.json": '{"kind": "plan", "schema": 1',
        "list.json": '[{"kind": "plan", "schema": 1}]',
        "foreign.json": '{"kind": "Deployment", "schema": "v1"}',
        ".hidden/scores.json": '{"kind": "scores", "schema": 1}',
    }.items():
        path = tmp_path / "run" / "model" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return tmp_path / "run"


def page_of(folder: Path) -> Parsed:
    return Parsed(report(folder).read_text(encoding="utf-8"))


def test_everything_is_in_it(folder) -> None:
    page = page_of(folder)
    assert "2 of 8 layers removed, −20.0 % parameters, perplexity ×1.20" in page.text
    for title in (
        "What was removed",
        "Importance per layer",
        "Perplexity",
        "Tasks",
        "Repair",
        "Speed and memory",
    ):
        assert title in page.text
    for said in (
        "Side by side",
        "Provenance",
        "c0ffee",
        "dense0",
        "small0",
        "shallower demo --out here",
        "torch 2.13.0",
        "bit for bit",
    ):
        assert said in page.text
    for figure in ("×1.25", "0.400 ± 0.020", "3.0000 → 2.2500", "75% closed", "×2.00", "18 to 22", "2026-01-02"):
        assert figure in page.text, figure
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
    assert page.tags.count("figure") == len(FIGURES)
    for name in FIGURES:
        assert (folder / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "report" / f"{name}.svg").read_text().startswith("<svg xmlns=")


def test_nothing_is_fetched_and_no_script_runs(folder) -> None:
    text = report(folder).read_text(encoding="utf-8")
    page = Parsed(text)
    assert "default-src 'none'" in text and not re.search(r"https?://|url\(|@import", text)
    assert not {"script", "link", "img", "iframe", "a"} & set(page.tags) and not {"src", "href", "onload"} & page.names


def test_the_same_artifacts_give_the_same_bytes(folder) -> None:
    def made() -> dict[str, bytes]:
        page = report(folder)
        return {path.name: path.read_bytes() for path in (page, *sorted(page.with_suffix("").iterdir()))}

    first = made()
    (folder / "report" / "stale.svg").write_text("left over")
    assert made() == first | {"stale.svg": b"left over"}  # it may be somebody's
    elsewhere = report(folder, out=folder.parent / "out" / "page.html")
    assert elsewhere.read_bytes() == first["report.html"]
    assert {path.name: path.read_bytes() for path in (folder.parent / "out" / "page").iterdir()}.items() < first.items()


def test_what_artifacts_say_is_escaped(tmp_path) -> None:
    """No name is markup, and none is a template."""
    evil = "<script>alert(1)</script>\"'& {{ 7 * 7 }} {% include 'report.css' %}"
    records = hand.everything()
    model = replace(hand.DENSE, source=f"org/{evil}")
    records["scores.json"] = replace(records["scores.json"], criterion=evil, model=model, settings={evil: evil})
    records["quality/dense.json"] = replace(
        records["quality/dense.json"], model=model, perplexity={evil: hand.text(3.0)}, tasks={evil: hand.task(0.5)}
    )
    records["plan.json"] = hand.plan(model, selection=evil, criterion=evil)
    records["comparison.json"] = Comparison(
        evil, [evil], [ComparedModel(evil, evil, "dense0", evil, 8, 1000, {})], [evil], [], hand.MADE
    )
    page = page_of(hand.write(tmp_path / "run", records))
    assert "script" not in page.tags and evil in page.text
    for path in (tmp_path / "run" / "report").glob("*.svg"):
        assert "<script" not in path.read_text()


def test_a_model_named_like_a_tag(tmp_path) -> None:
    records = hand.everything()
    model = replace(hand.DENSE, source="org/<script>", family="<b>")
    records |= {"plan.json": hand.plan(model), "model/shallower.json": hand.pruned(hand.plan(model), "small0")}
    page = report(hand.write(tmp_path / "run", records)).read_text(encoding="utf-8")
    assert "<h1>&lt;script&gt;</h1>" in page and "&lt;b&gt;, 8 layers" in page and "<script" not in page


def test_every_template_escapes_is_strict_and_is_shipped() -> None:
    """Nothing is let through unescaped in a template, a missing value is an error, and a wheel holds them all."""
    names = TEMPLATES.list_templates()
    folder = resources.files("shallower.reporting") / "templates"
    assert {"report.html.jinja", "parts.html.jinja", "report.css"} <= set(names)
    assert TEMPLATES.autoescape is True and TEMPLATES.undefined is StrictUndefined
    for name in names:
        assert not re.search(r"\|\s*safe|autoescape", (folder / name).read_text(encoding="utf-8"))
    with pytest.raises(UndefinedError):
        TEMPLATES.get_template("report.html.jinja").render()
    with pytest.raises(UndefinedError, match="not_shown"):
        TEMPLATES.get_template("parts.html.jinja").module.show([Text("a", "misspelt")])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["setuptools"]["package-data"]["shallower"]
    assert all(any(fnmatch(f"reporting/templates/{name}", pattern) for pattern in shipped) for name in names)


def test_dense_artifacts_alone_make_a_report(tmp_path) -> None:
    records = hand.everything()
    page = page_of(
        hand.write(tmp_path / "run", {name: records[name] for name in ("scores.json", "quality/dense.json")})
    )
    assert "8 layers, 1.0K parameters" in page.text and "What was removed" not in page.text


@pytest.mark.parametrize("name", sorted(hand.everything()))
def test_any_artifact_alone_makes_a_report(name, tmp_path) -> None:
    assert page_of(hand.write(tmp_path / "run", {name: hand.everything()[name]})).text


def test_a_mere_plan_has_removed_nothing(tmp_path) -> None:
    records = {name: hand.everything()[name] for name in ("plan.json", "scores.json")}
    text = page_of(hand.write(tmp_path / "run", records)).text
    assert "2 of 8 layers would be removed" in text and "What would be removed" in text and "that would go by" in text


def test_several_prunings(tmp_path) -> None:
    records = hand.everything()
    records["more/shallower.json"] = hand.pruned(hand.plan(removed=[2, 3, 4]), "more0", method=None)
    records["other-plan.json"] = hand.plan(removed=[6])
    page = page_of(hand.write(tmp_path / "run", records))
    assert "3 prunings, 1 to 3 of 8 layers removed" in page.text and "a plan; nothing written" in page.text
    assert {"stack.svg", "stack-2.svg", "stack-3.svg"} <= {
        path.name for path in (tmp_path / "run" / "report").iterdir()
    }


def test_a_pruning_of_a_pruned_model_is_told_in_the_first_numbering(tmp_path) -> None:
    again = replace(hand.pruned(hand.plan(hand.SMALL, removed=[0, 3]), "again0"), original=[1, 2, 6, 7])
    records = {name: hand.everything()[name] for name in ("model/shallower.json", "quality/dense.json")} | {
        "again/shallower.json": again
    }
    summary = Summary(collection.collect(hand.write(tmp_path / "run", records)))
    assert summary.root == hand.DENSE
    assert [str(pruning.removal) for pruning in summary.collection.prunings] == ["0, 3-5", "3, 5"]
    assert summary.collection.prunings[0].order == [4, 0]


def test_a_model_trained_further_belongs_to_its_pruning(tmp_path) -> None:
    healed = replace(hand.SMALL, source="somewhere/model", fingerprint="healed0")
    records = hand.everything() | {"healed.json": Evaluation(healed, {"prose": hand.text(11.0)}, provenance=hand.MADE)}
    page = page_of(hand.write(tmp_path / "run", records))
    assert "perplexity ×1.10" in page.text and "trained further" in page.text


def test_other_tokens_give_no_ratio(tmp_path) -> None:
    records = hand.everything()
    records["quality/small.json"] = Evaluation(hand.SMALL, {"prose": hand.text(12.0, "other")}, provenance=hand.MADE)
    page = page_of(hand.write(tmp_path / "run", records))
    assert "perplexity ×" not in page.text


# ---------------------------------------------------------------- bad input


def refused(*arguments, capsys) -> str:
    assert status("report", *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("left aside")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_artifacts_of_different_models(folder, capsys) -> None:
    save(hand.plan(replace(hand.DENSE, source="org/other", fingerprint="other0")), folder / "zz" / "plan.json")
    err = refused(folder, capsys=capsys)
    assert all(said in err for said in ("comparison.json", "zz/plan.json", "org/other", "other0", "different models"))
    assert not (folder / "report.html").exists()


def test_no_artifacts(tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    err = refused(tmp_path / "empty", capsys=capsys)
    assert all(kind in err for kind in ("scores", "plan", "pruned", "evaluation", "sweep", "speed"))
    assert "no folder" in refused(tmp_path / "missing", capsys=capsys)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("scores.json", {"scores": [1.0]}, "8 finite scores"),
        ("quality/dense.json", {"perplexity": {"prose": {"nll": 1.0}}}, "perplexity.prose.value: field required"),
        ("quality/dense.json", {"perplexity": {"prose": {"value": float("nan")}}}, "finite number"),
        ("quality/virtual.json", {"removed": [70]}, "virtual.json"),
        ("sweep.json", {"rows": [{"removed": "many", "perplexity": {}}]}, "sweep.json"),
        ("model/compensation.json", {"loss": {"dense": 1.0}}, "loss.before: field required"),
        ("plan.json", {"schema": 9}, "schema 9"),
    ],
)
def test_artifacts_that_are_not_valid(name, change, said, folder, capsys) -> None:
    content = json.loads((folder / name).read_text()) | change
    (folder / name).write_text(json.dumps(content))
    err = refused(folder, capsys=capsys)
    assert Path(name).name in err and said in err


def test_something_else_is_not_replaced(folder, capsys) -> None:
    (folder / "report.html").write_text("mine")
    assert "is no report of shallower" in refused(folder, capsys=capsys)
    (folder / "page").mkdir()
    (folder / "page" / "mine.txt").write_text("mine")
    assert "holds other things (mine.txt)" in refused(folder, "--out", folder / "page.html", capsys=capsys)
    assert "name of an .html file" in refused(folder, "--out", folder / "page", capsys=capsys)
    assert (folder / "report.html").read_text() == "mine" and (folder / "page" / "mine.txt").exists()


def test_a_repair_that_later_models_took_along_is_told_once(folder) -> None:
    (folder / "later").mkdir()
    shutil.copy(folder / "model/compensation.json", folder / "later")
    page = report(folder).read_text(encoding="utf-8")
    assert page.count("later/compensation.json, model/compensation.json</h3>") == 1
    assert page.count("compensation.json</h3>") == 1


def test_a_public_report_names_no_folder_of_this_machine(folder) -> None:
    """As it would where models and prompts were named by whole paths."""
    command = "shallower heal /home/me/a --data self:/home/me/p.jsonl --out=/home/me/out"
    for path in folder.rglob("*.json"):
        if '"provenance"' in (text := path.read_text(encoding="utf-8")):
            content = json.loads(text)
            content["provenance"]["command"] = command
            if isinstance(content.get("model"), dict):
                content["model"]["source"] = f"/home/me/models/{content['model']['source']}"
            path.write_text(json.dumps(content), encoding="utf-8")
    assert "/home/me" in report(folder).read_text(encoding="utf-8")
    page = report(folder, public=True).read_text(encoding="utf-8")
    assert "/home/me" not in page and "shallower heal a --data self:p.jsonl --out=out" in page


def test_links_and_large_files_are_left_aside(folder, tmp_path, monkeypatch, capsys) -> None:
    outside = hand.write(tmp_path / "outside", {"plan.json": hand.plan(replace(hand.DENSE, fingerprint="other0"))})
    (folder / "linked").symlink_to(outside)
    (folder / "linked.json").symlink_to(outside / "plan.json")
    assert report(folder).is_file()
    monkeypatch.setattr(collection, "LARGEST_ARTIFACT", 100)
    with pytest.raises(UserError, match="holds no artifacts"):
        report(folder, out=tmp_path / "other.html")


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [5.0], [-3.0, 2.0], [1e-9, 1e6], [3.0, 3.1], [1.0, 14.0], [-5.0, -4.0]]
)
@pytest.mark.parametrize("zero", [False, True])
def test_scales_hold_their_values_and_have_ticks(values, zero) -> None:
    scale = Scale.over(values, 100, 10, zero=zero)
    assert all(10 - 1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    assert 1 <= len(scale.ticks()) <= 9 and all(
        scale.low <= tick <= scale.high * (1 + 1e-9) + 1e-9 for tick in scale.ticks()
    )


def test_numbers_for_people() -> None:
    assert [short(value) for value in (0.0, 12.345678, 1234.5, 123456.7, 0.00012345)] == [
        "0",
        "12.35",
        "1234",
        "1.23e+05",
        "0.000123",
    ]


def test_commands_show_no_secrets() -> None:
    given = (
        "shallower score /home/me/model --out=/home/me/x.json --dataset https://me:pass@host/x --note "
        "hf_abcdefghijklmnop"
    )
    assert "pass" not in safe_command(given) and "hf_abc" not in safe_command(given)
    assert safe_command(given, paths=False).startswith("shallower score model --out=x.json")


def test_a_drawing_with_letters_that_the_font_lacks() -> None:
    drawing = Drawing("a", "模型", 40)
    drawing.text(0, 20, "模型 $x_1$ <b>")
    assert drawing.png().startswith(b"\x89PNG") and "&lt;b&gt;" in drawing.svg()


# ---------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1400, False), (1400, True)])
def test_in_a_browser(width, dark, folder, tmp_path) -> None:
    """No errors; every figure is drawn; nothing but tables in their boxes is wider than the page.

    Lettering can be read.
    """
    found, console = browser.measured(report(folder), width, tmp_path / "profile", dark=dark)
    assert console == []
    assert (found["figures"], found["outside"]) == (len(FIGURES), []) and found["width"] <= width
    assert min(found["heights"]) > 80 and found["smallest"] > 9
    paper, ink = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("paper", "ink"))
    assert (paper < 150 < 600 < ink) if dark else (ink < 150 < 600 < paper)
