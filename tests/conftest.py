"""Shapes are checked while testing; tiny models are saved once a session."""

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the Hub
sys.path.insert(0, str(Path(__file__).parent / "support"))

from shapes import check_shapes

check_shapes("shallower")

import pytest  # noqa: E402
import torch  # noqa: E402
import zoo  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """``saved(name)``: the folder of a saved zoo model, made once; copy it before changing it."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = zoo.save(name, tmp_path_factory.mktemp("zoo") / name.replace("+", "-"))
        return folders[name]

    return get


@pytest.fixture
def bench(monkeypatch):
    """``bench(name)``: a file of the benchmarks or of the docs, forgotten afterwards."""
    folders = [Path(__file__).parents[1] / name for name in ("benchmarks", "docs")]
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in (path for folder in folders for path in folder.glob("*.py")):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A small book to train on."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(zoo._SENTENCES * 8, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder beside the checkout; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data folder {SHARED.relative_to(SHARED.parents[2])} beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def smollm2():
    """The demo model, opened; the test is skipped where its package is missing."""
    from shallower import UserError, open_model
    from shallower.cli.demo import demo_model

    try:
        return open_model(demo_model())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1)  # tiny models: threads only wait for each other
