"""Mutants of every kind of file: the cheapest way to read one ends well or with a UserError, soon and within little
memory.
"""

import contextlib
import copy
import json
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts_by_hand as hand
import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import shallower
from shallower import UserError, artifacts
from shallower.anatomy.model import Model
from shallower.data.readers import read_text
from shallower.data.tokens import calibration_samples, read_tokens
from shallower.reporting.card import metadata
from shallower.settings.calibration import Calibration

SECONDS, BYTES = 10.0, 1 << 30  # what one mutant may take
ODD = [
    None,
    True,
    -1,
    0,
    1,
    7,
    3999,
    2**31,
    2**63,
    2**70,
    1e308,
    -0.5,
    "",
    "x",
    "../..",
    "\x00",
    [],
    {},
    [[]],
    [-1],
    {"a": {}},
    "9" * 5000,
]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """The path of everything inside parsed JSON."""
    found = [path] if path else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def changed_json(data: st.DataObject, raw: bytes) -> bytes:
    """The JSON with one or two of its places changed, dropped or doubled."""
    content = json.loads(raw)
    for _ in range(data.draw(st.integers(1, 2))):
        known = places(content)
        if not known:
            break
        *way, last = data.draw(st.sampled_from(known))
        inside = content
        for key in way:
            inside = inside[key]
        act = data.draw(st.sampled_from(["odd", "odd", "odd", "drop", "rename", "wrap"]))
        if act == "odd":
            inside[last] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
        elif act == "drop":
            del inside[last]
        elif act == "wrap":
            inside[last] = [inside[last]]
        elif isinstance(inside, dict):
            inside[data.draw(st.sampled_from(["x", "", "layers", f"{last}0"]))] = inside.pop(last)
    return json.dumps(content).encode()


def changed_bytes(data: st.DataObject, raw: bytes, most: int = 4096) -> bytes:
    """The file cut, with some bytes changed near its start, or with some put in."""
    act = data.draw(st.sampled_from(["cut", "bytes", "insert", "number"]))
    place = data.draw(st.integers(0, min(len(raw), most) - 1))
    if act == "cut":
        return raw[:place]
    if act == "insert":
        return raw[:place] + data.draw(st.binary(min_size=1, max_size=9)) + raw[place:]
    new = (
        struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1])))
        if act == "number"
        else data.draw(st.binary(max_size=4))
    )
    return raw[:place] + new + raw[place + len(new) :]


def changed_header(data: st.DataObject, raw: bytes) -> bytes:
    """A safetensors file with its header changed as JSON is, or as bytes are."""
    if data.draw(st.booleans()):
        return changed_bytes(data, raw)
    size = struct.unpack("<Q", raw[:8])[0]
    header = changed_json(data, raw[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + raw[8 + size :]


def either(data: st.DataObject, raw: bytes) -> bytes:
    return changed_bytes(data, raw, len(raw)) if data.draw(st.integers(0, 3)) == 0 else changed_json(data, raw)


class Kind:
    """A kind of file: how it is made, changed and read."""

    def __init__(self, name: str, file: str, change: Callable, read: Callable[[Path], Any]):
        self.name, self.file, self.change, self.read = name, file, change, read


def tiny_gguf(path: Path) -> None:
    """A llama of one layer in a .gguf file."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1),
        ("context_length", 32),
        ("embedding_length", 16),
        ("feed_forward_length", 32),
    ):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    words = ["<unk>", "<s>", "</s>", *(chr(97 + number) for number in range(13))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([1] * len(words))
    square, wide = np.zeros((16, 16), "f4"), np.zeros((32, 16), "f4")
    parts = {
        "attn_q": square,
        "attn_k": square,
        "attn_v": square,
        "attn_output": square,
        "ffn_gate": wide,
        "ffn_up": wide,
    }
    parts |= {"ffn_down": wide.T.copy(), "attn_norm": np.ones(16, "f4"), "ffn_norm": np.ones(16, "f4")}
    for name, values in {
        "token_embd": square,
        "output_norm": np.ones(16, "f4"),
        **{f"blk.0.{one}": part for one, part in parts.items()},
    }.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sampled(folder: Path) -> Any:
    wanted = Calibration(text=str(folder.parent / "text.txt"), samples=2, length=8)
    return calibration_samples(wanted, lambda: Model(folder, device="cpu").checkpoint.tokenizer(), zoo.VOCAB)


KINDS = [
    Kind("config", "model/config.json", either, lambda path: shallower.inspect(path.parent)),
    Kind("header", "model/model.safetensors", changed_header, lambda path: shallower.inspect(path.parent)),
    Kind("index", "sharded/model.safetensors.index.json", either, lambda path: shallower.inspect(path.parent)),
    Kind("gguf", "model.gguf", changed_bytes, shallower.inspect),
    Kind("tokenizer", "model/tokenizer.json", either, lambda path: sampled(path.parent)),
    Kind("tokens", "tokens.npy", changed_bytes, lambda path: read_tokens(path, zoo.VOCAB)),
    Kind("jsonl", "text.jsonl", either, lambda path: read_text(str(path))),
    Kind(
        "parquet",
        "text.parquet",
        lambda data, raw: changed_bytes(data, raw, len(raw)),
        lambda path: read_text(str(path)),
    ),
    Kind(
        "card",
        "README.md",
        lambda data, raw: changed_bytes(data, raw, len(raw)),
        lambda path: metadata(path.read_text("utf-8", "replace")),
    ),
    *(
        Kind(name, f"run/{file}", either, lambda path, kind=kind: artifacts.load(path, kind))
        for name, kind, file in (
            ("scores", "scores", "scores.json"),
            ("plan", "plan", "plan.json"),
            ("pruned", "pruned", "model/shallower.json"),
            ("evaluation", "evaluation", "quality/dense.json"),
            ("healing", "healing", "healed/healing.json"),
            ("compensation", "compensation", "model/compensation.json"),
            ("speed", "speed", "speed.json"),
            ("sweep", "sweep", "sweep.json"),
            ("comparison", "comparison", "comparison.json"),
        )
    ),
    Kind("report", "run/plan.json", either, lambda path: shallower.report(path.parent)),
]


@pytest.fixture(scope="module")
def files(saved, tmp_path_factory) -> Path:
    """A folder with a whole file of every kind."""
    home = tmp_path_factory.mktemp("whole")
    shutil.copytree(saved("llama"), home / "model")
    zoo.save("llama", home / "sharded", max_shard_size="60KB")
    tiny_gguf(home / "model.gguf")
    np.save(home / "tokens.npy", np.arange(4, 36).reshape(2, 16))
    (home / "text.txt").write_text("The dog saw the fox. " * 60)
    (home / "text.jsonl").write_text('{"text": "The dog."}')
    (home / "README.md").write_text('---\nlicense: mit\ntags: [a, "b"]\nlanguage:\n- en\n---\n# a\n')
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ["The dog.", "The fox."]}), home / "text.parquet")
    hand.write(home / "run", hand.everything())
    (home / "run" / "healed").mkdir()
    shutil.copy(Path(__file__).parents[1] / "fixtures" / "schema1" / "healing.json", home / "run" / "healed")
    return home


def held(kind: Kind, files: Path, tmp_path: Path, data: st.DataObject) -> None:
    source = files / kind.file
    if not source.is_file():
        pytest.skip(f"no {kind.file} can be made here")
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    if source.parent == files:
        work.mkdir()
        shutil.copy(files / "text.txt", work)
    else:
        shutil.copytree(files / kind.file.split("/")[0], work / kind.file.split("/")[0])
        shutil.copy(files / "text.txt", work)
    path = work / kind.file
    path.write_bytes(kind.change(data, source.read_bytes()))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with contextlib.suppress(UserError):
        kind.read(path)
    assert time.process_time() - started < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=12, deadline=None, suppress_health_check=QUIET, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_mutants(kind, files, tmp_path, data) -> None:
    held(kind, files, tmp_path, data)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length", "attention.head_count"])
@pytest.mark.parametrize("value", [3999, 2**31 - 1])
def test_metadata_of_a_larger_model_than_the_tensors(key, value, tmp_path) -> None:
    """It once was built at the size that the header says, which took all memory."""
    tiny_gguf(tmp_path / "model.gguf")
    raw, name = (tmp_path / "model.gguf").read_bytes(), f"llama.{key}".encode()
    place = raw.index(name) + len(name) + 4  # behind the type of the value
    (tmp_path / "model.gguf").write_bytes(raw[:place] + struct.pack("<I", value) + raw[place + 4 :])
    with pytest.raises(UserError, match=rf"llama\.{key} is {value}, and .*: download it again"):
        shallower.inspect(tmp_path / "model.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=400, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_many_mutants(kind, files, tmp_path, data) -> None:
    held(kind, files, tmp_path, data)
