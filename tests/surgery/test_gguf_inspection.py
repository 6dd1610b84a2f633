"""Inspection of .gguf files from their headers alone: kinds of layers, what may go, and what that costs."""

import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from commands import status
from gguf_files import tiny_gguf

import shallower
from shallower import UserError, drop_gguf, inspect_gguf, open_model
from shallower.artifacts import load
from shallower.storage.gguf import read_gguf

WIDE, DEEP = 8192, 48  # of a model that no machine of ours holds
RUN = """
import sys, time
from shallower.cli import main
try:
    main(sys.argv[1:])
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(time.process_time(), peak)
"""


def large_gguf(path: Path) -> Path:
    """A file whose weights are a hole, of so many bytes as a model of 30 billion parameters has."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(DEEP)
    layer = {"attn_q": (WIDE, WIDE), "ffn_gate": (3 * WIDE, WIDE), "ffn_up": (3 * WIDE, WIDE)}
    layer |= {"attn_output": (WIDE, WIDE), "ffn_down": (WIDE, 3 * WIDE)}
    kind = gguf.GGMLQuantizationType.F16
    for name, shape in {f"blk.{index}.{name}": shape for index in range(DEEP) for name, shape in layer.items()}.items():
        writer.add_tensor_info(f"{name}.weight", shape, "float16", 2 * shape[0] * shape[1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + 2 * DEEP * (2 + 9) * WIDE * WIDE + 4096)
    return path


def test_it_takes_no_time_and_no_memory_whatever_the_size(tmp_path) -> None:
    source = large_gguf(tmp_path / "large.gguf")
    assert source.stat().st_size > 50e9
    done = subprocess.run(
        [sys.executable, "-c", RUN, "inspect", str(source), "--out", str(tmp_path / "i.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = map(float, done.stdout.split()[-2:])
    assert f"{DEEP} layers in blk" in done.stdout
    assert peak < 300e3 and seconds < 1.5, (peak, seconds)
    found = load(tmp_path / "i.json", "inspection")
    assert found.removable == [*range(DEEP)] and found.model.fingerprint == "" and found.tied_embeddings


@pytest.mark.parametrize(
    ("arch", "kinds", "kept"),
    [
        ("llama", ["attention + MLP"] * 6, []),
        ("qwen3moe", ["attention + experts"] * 6, []),
        ("gemma3", ["sliding attention + MLP"] * 5 + ["attention + MLP"], []),
        ("lfm2", ["attention + MLP", "convolution + MLP", "convolution + MLP"] * 2, []),
        ("smollm3", ["attention + MLP"] * 6, [0, 1, 2, 3]),
    ],
)
def test_kinds_and_what_may_go(arch, kinds, kept, tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", arch)
    found = shallower.inspect(source)
    assert found.layer_kinds == kinds and found.removable == [one for one in range(6) if one not in kept]
    assert all("rotary" in found.refusals[str(one)] for one in kept)
    assert found.model.layer_parameters == inspect_gguf(source).model.layer_parameters
    assert found.dtype == read_gguf(source).storage


def test_the_fingerprint_is_told_once_the_file_was_hashed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("shallower.storage.hashes.SETTLED", -1)
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    assert inspect_gguf(source).model.fingerprint == ""
    assert inspect_gguf(source).model.fingerprint != open_model(source).record.fingerprint != ""
    assert inspect_gguf(source).model.fingerprint == open_model(source).record.fingerprint


def test_metadata_of_other_numbers_of_layers(tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "gemma3", keys={"attention.sliding_window_pattern": [True, False]})
    with pytest.raises(UserError, match="sliding_window_pattern is of 2 layers, and there are 6"):
        inspect_gguf(source)
    raw = (source := tiny_gguf(tmp_path / "b.gguf", "llama")).read_bytes()
    place = raw.index(b"llama.block_count") + len(b"llama.block_count") + 4  # behind the type of the value
    source.write_bytes(raw[:place] + (2**32 - 1).to_bytes(4, "little") + raw[place + 4 :])
    with pytest.raises(UserError, match=r"block_count is 4294967295, and its tensors are of 6 layers"):
        drop_gguf(source, "1")


def test_bad_files(tmp_path) -> None:
    one = tiny_gguf(tmp_path / "one.gguf", "llama", layers=1)
    assert inspect_gguf(one).refusals == {"0": "it is the only layer"}
    with pytest.raises(UserError, match="cannot be read"):
        inspect_gguf(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("nothing of the kind, and longer than a header")
    assert status("inspect", tmp_path / "text.gguf") == 2
    assert status("inspect", one, "--out", tmp_path / "text.gguf") == 2
