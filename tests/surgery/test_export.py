"""Export to GGUF: what the converter leaves out is added, the file proven against transformers; mistakes in a line.

The converter of the fast tests is a stand-in; llama.cpp's own runs where $LLAMA_CPP_ROOT names it.
"""

import json
import os
import shutil
from pathlib import Path

import gguf
import pytest
from commands import status
from gguf_files import SIZE, tiny_gguf

from shallower import Refusal, UserError, drop, drop_gguf, export, open_model, prune
from shallower.artifacts import load
from shallower.storage.gguf import read_gguf
from shallower.storage.gguf_writer import write_gguf
from shallower.surgery import convert
from shallower.surgery.gguf_rules import WINDOW, kept_tensors, metadata_without
from shallower.surgery.llama_cpp import llama_cpp_version

needs_llama_cpp = pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
COPYING = "import shutil, sys\nshutil.copy({file!r}, sys.argv[sys.argv.index('--outfile') + 1])\n"


@pytest.fixture
def pruned(tmp_path):
    """(a folder of a pruned tiny Gemma 3, sources of a converter that leaves its pattern out)."""
    source = tiny_gguf(tmp_path / "a.gguf", "gemma3")
    folder = tmp_path / "small"
    prune(open_model(source), drop_gguf(source, "1-2"), out=folder, verify=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"query_pre_attn_scalar": SIZE}))  # as llama.cpp has it
    header = read_gguf(source)
    changes = metadata_without(header, [1, 2])
    changes.pop(f"gemma3.{WINDOW}")
    write_gguf(header, tmp_path / "made.gguf", kept_tensors(header, [0, 3, 4, 5]), changes)
    return folder, stand_in(tmp_path / "llama.cpp", COPYING.format(file=str(tmp_path / "made.gguf")))


def stand_in(root: Path, script: str) -> Path:
    root.mkdir()
    (root / convert.SCRIPT).write_text(script)
    return root


@needs_llama_cpp
def test_the_pattern_that_the_converter_leaves_out_is_added(pruned, tmp_path, capsys, monkeypatch) -> None:
    folder, root = pruned
    out = tmp_path / "new" / "b.gguf"
    options = ["--type", "f32", "--llama-cpp", root, "--out", out]
    assert status("export", folder, *options) == 0
    assert "sliding_window_pattern = [True, True, True, False]" in capsys.readouterr().out
    made = load(out.with_name("b.gguf.json"), "exported")
    assert made.proof.difference <= 1e-4 and made.proof.same_next and made.proof.prompts == [5, 33, 48]
    field = gguf.GGUFReader(out).get_field(f"gemma3.{WINDOW}")
    assert field.contents() == [True, True, True, False]
    assert sorted(path.name for path in out.parent.iterdir()) == ["b.gguf", "b.gguf.json"]
    assert status("export", folder, *options) == 2
    assert "it is there already" in capsys.readouterr().err
    monkeypatch.setattr("shallower.stages.export.missing_patterns", lambda header, config: {})
    with pytest.raises(Refusal, match=r"llama\.cpp gives other values for the file"):
        export(folder, out=tmp_path / "c.gguf", type="f32", llama_cpp=root)
    assert not list(tmp_path.glob("*c.*gguf*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "llama.cpp's converter is needed: give its sources by --llama-cpp ROOT or $LLAMA_CPP_ROOT"),
        (("--llama-cpp", "nowhere"), "--llama-cpp nowhere: there is no convert_hf_to_gguf.py"),
        (("--type", "q4_k_m", "--llama-cpp", "ROOT"), "made by llama-quantize, which is neither on the PATH nor built"),
        (("--type", "q4", "--llama-cpp", "ROOT"), "--type q4: allowed are f32, f16, bf16, q8_0, and with llama.cpp's"),
        (("--type", "q4_k_m", "--like", "a.gguf"), "--type q4_k_m: what changed is rounded here: allowed are f32, f16"),
        (("--to", "onnx"), "--to onnx: allowed are gguf"),
        (("--out", "b.bin"), "--out b.bin: the name of a .gguf file is needed"),
        (("--llama-cpp", "ROOT"), "llama.cpp's converter does not take"),
    ],
)
def test_mistakes(options, said, saved, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv(convert.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    root = stand_in(tmp_path / "llama.cpp", "raise SystemExit('NotImplementedError: Architecture is not supported')\n")
    given = [str(root) if option == "ROOT" else option for option in options]
    out = () if "--out" in options else ("--out", "b.gguf")
    assert status("export", saved("llama"), *given, *out, "--no-verify") == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_what_llama_cpp_does_not_know(saved, tmp_path) -> None:
    root = stand_in(tmp_path / "llama.cpp", "")
    how = {"llama_cpp": root, "verify": False}
    prune(
        saved("llama"),
        drop(saved("llama"), "1.mlp, 2.attention"),
        out=tmp_path / "custom",
        format="custom",
        verify=False,
    )
    with pytest.raises(Refusal, match=r"is in the custom form, which llama\.cpp does not know"):
        export(tmp_path / "custom", out=tmp_path / "b.gguf", **how)
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    with pytest.raises(Refusal, match=r"is a \.gguf file already"):
        export(source, out=tmp_path / "b.gguf", **how)
    (tmp_path / "taken.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="it is there already"):
        export(saved("llama"), out=tmp_path / "taken.gguf", overwrite=True, **how)


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.skipif(convert.VARIABLE not in os.environ, reason="$LLAMA_CPP_ROOT names no sources of llama.cpp")
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_k_m"])
def test_llama_cpps_own_converter(kind, smollm2, tmp_path) -> None:
    if kind == "q4_k_m":
        try:
            convert.quantiser(None)
        except UserError:
            pytest.skip("llama-quantize is neither on the PATH nor built in $LLAMA_CPP_ROOT")
    prune(smollm2, drop_gguf(smollm2.checkpoint.source, "12-17"), out=tmp_path / "small", verify=False)
    made = export(tmp_path / "small", out=tmp_path / "small.gguf", type=kind)
    assert made.proof.difference <= 1e-4 if kind == "f32" else made.proof.divergence <= 0.05
    assert json.loads((tmp_path / "small.gguf.json").read_text())["kind"] == "exported"


def test_code_of_a_folder_is_not_shown_to_the_converter_and_paths_may_be_relative(saved, tmp_path, monkeypatch) -> None:
    """Of some families the converter runs what a tokenizer's config names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved("llama"), "model")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads(Path("model", name).read_text()) if Path("model", name).is_file() else {}
        Path("model", name).write_text(json.dumps(content | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    Path("model/evil.py").write_text("raise SystemExit('run')")
    (seen := tmp_path / "seen.json").touch()
    look = f"""
import json, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
mapped = [one.name for one in folder.glob("*.json") if "auto_map" in one.read_text()]
pathlib.Path({str(seen)!r}).write_text(json.dumps([folder.name, [one.name for one in folder.glob("*.py")], mapped]))
"""
    file = tiny_gguf(tmp_path / "made.gguf", "llama", layers=8)
    stand_in(Path("llama.cpp"), look + COPYING.format(file=str(file)))
    export("model", out="b.gguf", llama_cpp="llama.cpp", verify=False)
    assert json.loads(seen.read_text()) == ["model", [], []]
    assert Path("b.gguf").is_file() and sorted(path.name for path in Path("llama.cpp").iterdir()) == [convert.SCRIPT]


@needs_llama_cpp
def test_fewer_bits_are_made_by_the_quantiser(tmp_path, monkeypatch, capsys) -> None:
    """A stand-in rounds; what that costs is told apart from whether llama.cpp reads the file as transformers does."""
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    prune(open_model(source), drop_gguf(source, "1-2"), out=tmp_path / "small", verify=False)
    header = read_gguf(source)
    write_gguf(header, tmp_path / "made.gguf", kept_tensors(header, [0, 3, 4, 5]), metadata_without(header, [1, 2]))
    root = stand_in(tmp_path / "llama.cpp", COPYING.format(file=str(tmp_path / "made.gguf")))
    rounded = tiny_gguf(tmp_path / "rounded.gguf", "llama", kind="Q4_0")
    header = read_gguf(rounded)
    write_gguf(header, tmp_path / "fewer.gguf", kept_tensors(header, [0, 3, 4, 5]), metadata_without(header, [1, 2]))
    program = tmp_path / "llama.cpp/build/bin/llama-quantize"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n[ $3 = Q4_K_M ] && cp {tmp_path / 'fewer.gguf'} $2\n")
    program.chmod(0o755)
    made = export(tmp_path / "small", out=tmp_path / "b.gguf", type="Q4_K_M", llama_cpp=root)
    assert made.type == "q4_k_m" and made.proof.divergence < 0.05 < made.proof.rounded
    assert sorted(path.name for path in tmp_path.glob("*b.*")) == ["b.gguf", "b.gguf.json"]
    with pytest.raises(UserError, match="llama-quantize does not make q6_k of it"):
        export(tmp_path / "small", out=tmp_path / "c.gguf", type="q6_k", llama_cpp=root)
    assert not list(tmp_path.glob("*c.*gguf*"))


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.skipif(convert.VARIABLE not in os.environ, reason="$LLAMA_CPP_ROOT names no sources of llama.cpp")
def test_parts_go_out_as_deci(smollm2, tmp_path) -> None:
    """With the tokenizer of SmolLM2, which llama.cpp's converter does not expect of a DeciLM."""
    chosen = drop(smollm2, "3.mlp, 13, 20.attention")
    prune(smollm2, chosen, out=tmp_path / "small", verify=False, format="deci")
    made = export(tmp_path / "small", out=tmp_path / "small.gguf", type="f32")
    assert made.proof.difference <= 1e-4 and made.proof.same_next
    header = read_gguf(tmp_path / "small.gguf")
    assert header.architecture == "deci" and header.own("attention.head_count")[19] == 0
