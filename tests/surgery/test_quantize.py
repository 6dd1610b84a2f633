"""Quantisation in another environment: what is asked of it, what is kept of what it writes, mistakes in a line.

The environment of the fast tests is a stand-in; llm-compressor itself runs where $SHALLOWER_QUANTIZE_PYTHON names it.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from commands import status
from quantizing import stand_in
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

import shallower
from shallower import Refusal, UserError, drop, prune, quantize, report
from shallower.artifacts import load
from shallower.surgery import llm_compressor, quantise_worker
from shallower.surgery.llm_compressor import VARIABLE

TINY = ("--samples", "8", "--length", "16")
CALIBRATION = {"samples": 8, "length": 16}


@pytest.fixture(autouse=True)
def python(tmp_path, monkeypatch):
    """The interpreter of the stand-in, which the environment variable names."""
    path = stand_in(tmp_path / "env")
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.delenv("STAND_IN", raising=False)
    return path


@pytest.fixture
def pruned(saved, tmp_path) -> Path:
    """A pruned tiny model."""
    prune(saved("llama"), drop(saved("llama"), "2,5"), out=tmp_path / "pruned", verify=False)
    return tmp_path / "pruned"


def jobs(python: Path, do: str) -> dict:
    return json.loads((python.parent / f"{do}.json").read_text())


def test_a_pruned_model_keeps_its_lineage(pruned, python, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "small"
    assert status("quantize", pruned, *TINY, "--out", out) == 0
    said = capsys.readouterr()
    assert "KL 0.25 nats per token, perplexity 20.09 -> 24.53 (x 1.221)" in " ".join(said.out.split())
    assert "groups of 32 (the largest that divides all input widths)" in said.err and "at work" in said.err
    made, record = load(out / "quantised.json", "quantised"), load(out / "shallower.json", "pruned")
    assert (made.method, made.bits, made.group_size, made.group_size_chosen) == ("gptq", 4, 32, True)
    assert (made.projections, made.left, made.fitted_tokens, made.proof.tokens) == (42, ["lm_head"], 112, 16)
    assert made.environment["llmcompressor"] == "0.14.0.1" and made.model.source == "pruned"
    assert record.original == [0, 1, 3, 4, 6, 7] and record.plan.removed == [2, 5]
    assert record.quantised == made.report() and record.fingerprint == made.fingerprint
    assert record.weight_bytes == made.weight_bytes < made.weight_bytes_before
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (out, pruned))
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == before | {"dtype": "bfloat16"}  # what another version of transformers writes stays out
    assert made.files == sorted(path.name for path in out.iterdir())
    assert {"model.safetensors", "tokenizer.json", "README.md", "shallower.json"} <= set(made.files)
    card = (out / "README.md").read_text()
    assert "rounded to 4 bits (`gptq`)" in card and "before it was quantised" not in card  # it was not verified
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    assert shallower.inspect(out).model.layers == 6
    with pytest.raises(UserError, match=r"is quantised \(compressed-tensors\): what is rounded already"):
        quantize(out, out=tmp_path / "again", **CALIBRATION)


def test_the_environment_is_given_our_tokens(saved, python, tmp_path) -> None:
    given = np.arange(4, 4 + 96).reshape(6, 16)
    np.save(tmp_path / "ids.npy", given)
    made = quantize(saved("llama"), out=tmp_path / "out", tokens=tmp_path / "ids.npy", bits=8, group_size=16)
    quantised, proven = jobs(python, "quantise"), jobs(python, "prove")
    assert quantised["ids"] + proven["ids"] == given.tolist() and len(proven["ids"]) == 1
    asked = {"method": "gptq", "bits": 8, "group_size": 16, "ignore": ["lm_head"], "dtype": "bfloat16"}
    assert quantised.items() >= (asked | {"trust_remote_code": False}).items()
    assert (proven["dtype"], made.calibration.source, made.group_size_chosen) == ("float32", "ids.npy", False)
    assert not (tmp_path / "out" / "shallower.json").exists()
    assert quantize(saved("llama"), out=tmp_path / "out", overwrite=True, **CALIBRATION).bits == 4


def test_the_report_tells_of_it(pruned, tmp_path) -> None:
    quantize(pruned, out=tmp_path / "all" / "small", **CALIBRATION)
    page = report(tmp_path / "all").read_text()
    assert "Quantisation" in page and "42 projections to 4 bits in groups of 32" in page


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("fails", "(ValueError: the model type `new` is not known)"),
        ("killed", "(ended by signal 9: is there memory enough?)"),
        ("mute", "quantising MODEL failed in the environment of"),
        ("list", "has written no answer that can be read"),
        ("broken", "is not JSON"),
        ("few", "llm-compressor has packed 49 weights of 56 projections"),
        ("plain", "llm-compressor has written no quantisation config"),
        ("nan", "yields numbers that are not finite: nothing was kept"),
        ("far", "is far from the model (KL 0.25 nats per token, perplexity x 403 on held-out samples)"),
        ("without", "python -m venv quantize-env && quantize-env/bin/pip install llmcompressor, then --python"),
        ("silent", "does not answer as a Python interpreter"),
    ],
)
def test_what_goes_wrong_in_the_environment(mode, said, saved, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STAND_IN", mode)
    shutil.copytree(saved("llama"), tmp_path / "home" / "MODEL")
    monkeypatch.chdir(tmp_path / "home")
    assert status("quantize", "MODEL", *TINY, "--out", "out") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last and "Traceback" not in last
    assert [path.name for path in Path().iterdir()] == ["MODEL"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "awq"), "--method awq: unknown; allowed are gptq"),
        (("--bits", "3"), "--bits 3: allowed are 4 and 8"),
        (("--group-size", "0"), "--group-size 0: a number of inputs, 1 or more"),
        (("--group-size", "48"), "--group-size 48: the input widths 64 are no multiples of 48: give a --group-size"),
        (("--python", "nowhere/python"), "there is no interpreter nowhere/python that can be run"),
        (("--samples", "1"), "--samples 1: gptq needs calibration text, and one more sample to compare on"),
        (("--length", "9999", "--samples", "2"), "--length"),
        (("--text", "no.txt"), "no.txt"),
        (("--out", "full"), "--out full holds nothing that shallower wrote"),
    ],
)
def test_mistakes(options, said, saved, python, tmp_path, capsys, monkeypatch) -> None:
    home = tmp_path / "home"
    (home / "full").mkdir(parents=True)
    (home / "full" / "precious").write_text("kept")
    monkeypatch.chdir(home)
    tiny = () if "--samples" in options else ("--samples", "2")
    out = ("--overwrite",) if "--out" in options else ("--out", "out")
    assert status("quantize", saved("llama"), *tiny, *options, *out) == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (home / "out").exists() and (home / "full" / "precious").read_text() == "kept"
    assert not (python.parent / "quantise.json").exists()


def test_what_cannot_be_quantised(saved, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Refusal, match=r"is a \.gguf file, which llama\.cpp quantises into types of its own"):
        quantize(tmp_path / "a.gguf", out=out)
    custom = tmp_path / "custom"
    prune(saved("llama"), drop(saved("llama"), "1.mlp"), out=custom, format="custom", verify=False)
    with pytest.raises(Refusal, match="is in a form with code of its own beside the weights"):
        quantize(custom, out=out)
    encoder = tmp_path / "encoder"
    config = BertConfig(vocab_size=512, hidden_size=32, num_attention_heads=2, num_hidden_layers=2)
    zoo.save(BertForMaskedLM(config), encoder, with_tokenizer=False)
    with pytest.raises(UserError, match="is an encoder"):
        quantize(encoder, out=out)
    with pytest.raises(Refusal, match="lie in plain linear projections, which is all that llm-compressor rounds here"):
        quantize(saved("gpt2"), out=out)
    assert not out.exists()


def test_widths_that_no_group_size_divides(saved, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("llama"))
    model.config.intermediate_size = 40
    odd = zoo.save(AutoModelForCausalLM.from_config(model.config), tmp_path / "odd")
    said = r"the input widths 40 are no multiples of 32: give a group_size that divides them, or prune to multiples"
    with pytest.raises(UserError, match=said):
        quantize(odd, out=tmp_path / "out", **CALIBRATION)
    assert quantize(odd, out=tmp_path / "out", group_size=8, **CALIBRATION).group_size == 8


def test_told_to_stop_it_ends_the_other_process_too(saved, python, tmp_path) -> None:
    out = tmp_path / "place" / "out"
    command = [sys.executable, "-m", "shallower", "quantize", str(saved("llama")), *TINY, "--out", str(out)]
    environment = os.environ | {"STAND_IN": "hangs"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (python.parent / "quantise.json").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143 and "stopped: " in process.stderr.read()
    with pytest.raises(ProcessLookupError):
        os.kill(jobs(python, "quantise")["pid"], 0)
    assert not out.parent.exists()


# ---------------------------------------------------------------- the script of the other environment


@pytest.fixture
def worker(monkeypatch):
    """The worker in this process, where plain files stand for quantised ones."""
    monkeypatch.setattr(quantise_worker, "CompressedTensorsConfig", lambda **how: None)
    return quantise_worker


def asked(tmp_path, tokens, **job) -> Path:
    """A job file."""
    np.save(tmp_path / "tokens.npy", np.array(tokens))
    job |= {"tokens": str(tmp_path / "tokens.npy"), "answer": str(tmp_path / "answer.json"), "trust_remote_code": False}
    (tmp_path / "job.json").write_text(json.dumps(job))
    return tmp_path / "job.json"


@torch.no_grad()
def test_the_comparison_is_the_plain_formula(saved, worker, tmp_path) -> None:
    before = AutoModelForCausalLM.from_pretrained(saved("llama")).eval()
    after = AutoModelForCausalLM.from_pretrained(saved("llama")).eval()
    after.model.layers[3].mlp.down_proj.weight.mul_(0.5)
    after.save_pretrained(tmp_path / "after")
    rows = torch.arange(4, 36).reshape(2, 16)
    path = asked(
        tmp_path, rows.tolist(), do="prove", model=str(saved("llama")), out=str(tmp_path / "after"), dtype="float32"
    )
    assert worker.main(str(path)) == 0
    found = json.loads((tmp_path / "answer.json").read_text())
    one, other = (model(input_ids=rows).logits.log_softmax(-1) for model in (before, after))
    kl = torch.nn.functional.kl_div(other.flatten(0, 1), one.flatten(0, 1), reduction="batchmean", log_target=True)
    assert found["divergence"] == pytest.approx(float(kl), rel=1e-4) and found["divergence"] > 0
    for name, model in (("nll_before", before), ("nll_after", after)):
        assert found[name] == pytest.approx(float(model(input_ids=rows, labels=rows).loss), rel=1e-5)
    assert found["same_next"] == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).float().mean()))


def test_what_llm_compressor_is_asked(saved, worker, tmp_path, monkeypatch) -> None:
    given = {}
    kinds = SimpleNamespace(QuantizationArgs=dict, QuantizationScheme=dict)
    monkeypatch.setitem(sys.modules, "compressed_tensors.quantization", kinds)
    monkeypatch.setitem(sys.modules, "llmcompressor.modifiers.gptq", SimpleNamespace(GPTQModifier=dict))
    monkeypatch.setitem(sys.modules, "llmcompressor", SimpleNamespace(oneshot=lambda **how: given.update(how)))
    data = SimpleNamespace(Dataset=SimpleNamespace(from_dict=lambda columns: columns))
    monkeypatch.setitem(sys.modules, "datasets", data)
    how = {"method": "gptq", "bits": 4, "group_size": 32, "ignore": ["lm_head"], "max_shard_size": "5GB"}
    out = tmp_path / "out"
    path = asked(tmp_path, [[5, 6, 7]], do="quantise", model=str(saved("llama")), out=str(out), dtype="bfloat16", **how)
    assert worker.main(str(path)) == 0 and json.loads((tmp_path / "answer.json").read_text()) == {}
    group = given["recipe"]["config_groups"]["group_0"]
    assert group["targets"] == ["Linear"] and given["recipe"]["ignore"] == ["lm_head"]
    form = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    assert group["weights"] == form
    assert given["dataset"] == {"input_ids": [[5, 6, 7]], "attention_mask": [[1, 1, 1]]}
    assert (given["num_calibration_samples"], given["max_seq_length"]) == (1, 3)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_the_last_line_says_why_it_failed(worker, tmp_path, capsys) -> None:
    path = asked(tmp_path, [[5]], do="prove", model=str(tmp_path / "none"), out="", dtype="float32")
    assert worker.main(str(path)) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(("seconds", "ends"), [(600, 3), (0, 0)])
def test_the_worker_ends_with_who_started_it(seconds, ends, tmp_path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(quantise_worker.__file__).parent)!r})\n"
    code += "import quantise_worker, time\nquantise_worker.end_with_parent()\nprint('on', flush=True)\n"
    code += f"time.sleep({seconds})"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "on\n"
        if seconds:
            process.stdin.close()
        assert process.wait(60) == ends  # by itself while its input is open, too


# ---------------------------------------------------------------- llm-compressor itself

REAL = os.environ.get(VARIABLE)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason=f"${VARIABLE} names no environment that has llm-compressor")
@pytest.mark.parametrize("bits", [4, 8])
def test_llm_compressor_itself(bits, pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, REAL)
    made = quantize(pruned, out=tmp_path / "out", bits=bits, samples=16, length=32)
    assert made.projections == 42 and made.weight_bytes < made.weight_bytes_before / 2
    assert 0 < made.proof.divergence < (0.5 if bits == 4 else 0.01) and math.isfinite(made.proof.ratio)
    assert load(tmp_path / "out" / "shallower.json", "pruned").quantised == made.report()
    assert llm_compressor.environment(None).versions == made.environment
    again = quantize(pruned, out=tmp_path / "again", bits=bits, samples=16, length=32)
    assert again.fingerprint == made.fingerprint
