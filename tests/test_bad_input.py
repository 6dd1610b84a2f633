"""Bad input of every kind: one line that starts with "error:", status 2, no traceback, and the disk as it was before."""

import builtins
import errno
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from shallower.cli import main

TINY = ("--samples", "2", "--length", "16")
MAGNITUDE = ("--criterion", "magnitude")
DROP = ("prune", "MODEL", "--drop", "3", "--out", "out")
SCORE = ("score", "MODEL", "--out", "scores.json")
PROGRESS = re.compile(r"loading .*|[\w ]+( \d+/\d+)?: \d+/\d+, .*")


def bug(reason: str):
    return pytest.mark.xfail(strict=True, reason=reason)


def disk(folder) -> dict:
    """Everything below a folder, hidden or not."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(saved, tmp_path, monkeypatch, capsys):
    """``refused(argument, …)``: the message; MODEL stands for a copy of a small Llama. Works below ``tmp_path``."""
    shutil.copytree(saved("llama"), tmp_path / "MODEL")
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> str:
        before = disk(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        *progress, message = err.splitlines()
        assert end.value.code == 2 and message.startswith("error: ") and not out
        assert all(map(PROGRESS.fullmatch, progress)), progress
        assert disk(tmp_path) == before
        return message

    return call


# ---------------------------------------------------------------- models


def config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(folder, change) -> None:
    """Rewrite the header of the weight file."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    content = change(json.loads(raw[8 : 8 + size]))
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + raw[8 + size :])


def weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def index(folder, shard: str) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


def sharded(folder) -> None:
    shutil.rmtree(folder)
    zoo.save("llama", folder, max_shard_size="200KB")
    next(folder.glob("*-00002-*")).unlink()


def replaced(folder, model) -> None:
    with torch.no_grad():
        zoo.randomise(model, 0)
    shutil.rmtree(folder)
    model.save_pretrained(folder)


def bert(kind, **fields):
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(BertConfig(**sizes, max_position_embeddings=64, is_decoder=False, **fields))


def t5():
    return T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def first_shifted(content: dict) -> dict:
    """The first tensor's bytes overlap those of the next."""
    one, two = (name for name in content if name.endswith(("0.mlp.gate_proj.weight", "0.mlp.up_proj.weight")))
    content[one]["data_offsets"] = content[two]["data_offsets"]
    return content


UNREAD = "SafetensorError is none of the kinds that load_reporting catches"
BROKEN = {  # name: (what is done to the folder, what the message says)
    "missing": (shutil.rmtree, "no folder MODEL"),
    "no config": (lambda f: (f / "config.json").unlink(), "no model folder: it has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not readable"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is not readable"),
    "config odd": (lambda f: config(f, hidden_size="much"), "does not accept its config.json.*hidden_size"),
    "unknown": (lambda f: config(f, model_type="nix"), "does not accept its config.json.*nix"),
    "remote code": (lambda f: config(f, model_type="nix", auto_map={"AutoConfig": "a.B"}), "--trust-remote-code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only pickled weights.*pytorch_model.bin"),
    "truncated": (lambda f: os.truncate(f / "model.safetensors", 90_000), r"truncated \(90000 bytes"),
    "empty": (lambda f: os.truncate(f / "model.safetensors", 0), r"truncated \(0 bytes"),
    "header no JSON": (lambda f: header(f, lambda _: b"{nix}"), "corrupt safetensors header"),
    "header a list": (lambda f: header(f, lambda _: [1]), "corrupt safetensors header"),
    "header and shape": (
        lambda f: header(f, lambda h: h | {"lm_head.weight": h["lm_head.weight"] | {"shape": [3]}}),
        "do not fit its shape",
    ),
    "header huge": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "no safetensors file or is truncated"),
    "index out": (lambda f: index(f, "../../x"), r"points outside its folder \('../../x'\)"),
    "index absolute": (lambda f: index(f, "/etc/passwd"), "points outside its folder"),
    "index strange": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not a readable index"),
    "shard missing": (sharded, "lacks the shard model-00002-of"),
    "encoder": (lambda f: replaced(f, bert(BertForMaskedLM)), r"is an encoder \(BertForMaskedLM\)"),
    "encoder-decoder": (lambda f: replaced(f, t5()), "encoder-decoder"),
    "layers and config": (lambda f: config(f, num_hidden_layers=9), "no stack of 9 layers"),
    "shapes and config": (lambda f: config(f, intermediate_size=97), "transformers cannot load it"),
    "a weight missing": (lambda f: weights(f, lambda w: w.pop("model.norm.weight")), r"lacks weights.*model\.norm"),
    "side file": (lambda f: (f / "shallower.json").write_text('{"original": [1, 2]}'), "does not fit the model"),
    "bytes shared": (lambda f: header(f, first_shifted), "MODEL"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=bug(UNREAD)) if n == "bytes shared" else n for n in BROKEN])
def test_broken_models(name, refused, tmp_path) -> None:
    damage, message = BROKEN[name]
    damage(tmp_path / "MODEL")
    assert re.search(message, refused(*DROP))


LACKING = bug("load() drops transformers' report of missing keys: they are drawn at random, and scored")
DEEP = bug("RecursionError of json.loads is not caught")
ODD_CONFIG = bug("errors of building the model from an odd config are not caught in Model.outline and Model._shapes")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: weights(f, lambda w: w["model.norm.weight"].fill_(float("nan"))), "NaN"),
        (lambda f: replaced(f, bert(BertLMHeadModel)), "is no decoder"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer that loads.*--tokens"),
        pytest.param(lambda f: weights(f, lambda w: w.pop("model.norm.weight")), "model.norm", marks=LACKING),
        pytest.param(lambda f: config(f, num_hidden_layers=9), "layers", marks=LACKING),
        pytest.param(lambda f: header(f, lambda _: b"[" * 99999), "header", marks=DEEP),
        pytest.param(lambda f: (f / "config.json").write_text("[" * 99999), "config", marks=DEEP),
        pytest.param(lambda f: config(f, hidden_act="nix"), "nix", marks=ODD_CONFIG),
        pytest.param(lambda f: config(f, vocab_size=-1), "config", marks=ODD_CONFIG),
    ],
)
@pytest.mark.parametrize(
    "verb", [("score", "MODEL", *TINY, "--out", "s.json"), ("evaluate", "MODEL", "--length", "16", "--max-tokens", "32")]
)
def test_models_that_only_running_exposes(verb, damage, message, refused, tmp_path) -> None:
    damage(tmp_path / "MODEL")
    assert re.search(message, refused(*verb))


def test_nan_and_encoders_are_not_pruned(refused, tmp_path) -> None:
    weights(tmp_path / "MODEL", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert "NaN" in refused(*DROP)
    replaced(tmp_path / "MODEL", bert(BertLMHeadModel))
    assert "decoder" in refused(*DROP) and "decoder" in refused(*DROP, "--no-verify")


# ---------------------------------------------------------------- options


PLAN, GIVE = ("plan", "MODEL", *MAGNITUDE), ("prune", "MODEL", "--out", "out")
OPTIONS = [
    ((*PLAN, "--remove", "7"), "7 layers cannot go.*at most 6"),
    ((*PLAN, "--remove", "0"), "--remove 0: at least 1"),
    ((*PLAN, "--remove", "x"), "--remove"),
    *[((*PLAN, "--ratio", ratio), "between 0 and 1") for ratio in ("0", "1", "-0.1", "1.5", "nan", "inf")],
    ((*PLAN, "--ratio", "0.01"), "less than half a layer"),
    ((*PLAN, "--ratio", "0.95"), "layers cannot go"),
    ((*PLAN, "--target-params", "5,5B"), "a number such as 5.5B"),
    ((*PLAN, "--target-params", "1B"), "312384 parameters already"),
    ((*PLAN, "--target-params", "9"), "cannot go"),
    (PLAN, "how much to remove"),
    ((*PLAN, "--remove", "2", "--ratio", "0.2"), "one of --remove"),
    ((*PLAN, "--remove", "2", "--keep-first", "some"), "--keep-first some: give a number of layers, or auto"),
    ((*PLAN, "--remove", "1", "--keep-first", "4", "--keep-last", "4"), "protect all 8"),
    ((*PLAN, "--remove", "2", "--selection", "lowset"), "did you mean lowest"),
    ((*PLAN, "--remove", "2", "--selection", "positional", "--set", "strategy=nix"), "allowed are max-gap, input"),
    ((*PLAN, "--remove", "2", "--selection", "positional", "--set", "nix=1"), "no setting 'nix'; its settings: strategy"),
    ((*PLAN, "--remove", "2", "--selection", "positional", "--set", "strategy"), "write key=value"),
    ((*PLAN, "--remove", "2", "--selection", "greedy", "--iterative"), "--iterative has no meaning"),
    ((*PLAN, "--remove", "4", "--selection", "window", "--keep-first", "5"), "cannot go"),
    ((*SCORE, "--criterion", "tailor"), "did you mean taylor"),
    ((*SCORE, "--criterion", "random", "--set", "seed=x"), "seed=x: expected int"),
    ((*SCORE, *MAGNITUDE, "--set", "seed=1"), "magnitude has no setting 'seed'"),
    ((*SCORE, "--dtype", "fp8"), "unknown dtype 'fp8'; allowed are fp32, bf16, fp16"),
    ((*SCORE, "--device", "nix"), "unknown device 'nix'"),
    ((*SCORE, "--bos", "nix"), "allowed are auto, first, every, none"),
    ((*SCORE, "--samples", "0"), "--samples 0"),
    ((*SCORE, "--length", "1"), "--length 1"),
    ((*SCORE, "--text", "a.txt", "--tokens", "b.npy"), "not several"),
    ((*SCORE, "--dataset", ":::"), "cannot be loaded"),
    (("score", "nix", "--out", "s.json"), "no folder nix"),
    (("score", "org/nix", "--out", "s.json"), "cannot be fetched from the Hub"),
    (("score", "MODEL/config.json"), "is a file that is no model"),
    (("score", "nix.gguf"), "no file nix.gguf"),
    (("evaluate", "MODEL", "--stride", "0"), "--stride 0"),
    (("evaluate", "MODEL", "--max-tokens", "5"), "--max-tokens 5"),
    *[((*GIVE, "--drop", drop), message) for drop, message in [("3,3", "3 twice"), ("8", "0 to 7"), ("a", "such as"), ("-1", "such as")]],
    *[
        ((*GIVE, "--drop", drop), message)
        for drop, message in [("0-7", "one must stay"), ("5-3", "one must"), ("", "such as"), ("3,", "such as")]
    ],
    (GIVE, "say what to remove"),
    ((*GIVE, "--drop", "3", "--remove", "1"), "say what to remove: one of"),
    ((*GIVE, "--drop", "3", "--plan", "p.json"), "say what to remove: one of"),
    ((*GIVE, "--drop", "3", "--max-shard-size", "big"), "'big' is not a size"),
    ((*GIVE, "--drop", "3", "--save-dtype", "fp8"), "unknown dtype"),
    ((*GIVE, "--drop", "3", "--nix"), "No such option: --nix"),
    (("prune", "MODEL", "--drop", "3"), "Missing option '--out'"),
    (("prune",), "Missing (argument|option)"),
    (("inspect", "MODEL", "more"), "unexpected extra argument"),
    (("trim", "MODEL"), "No such command 'trim'"),
    (("score", "--help", "nix"), "unknown method 'nix'"),
]
TRACEBACKS = [
    ((*SCORE, "--seed", "-1"), "seed", "a negative seed: ValueError of numpy"),
    ((*PLAN, "--remove", "2", "--keep-first", "²"), "keep-first", "str.isdigit is true for ², int is not"),
    ((*GIVE, "--drop", "3", "--max-shard-size", "infGB"), "size", "OverflowError in total_size"),
    ((*SCORE, *TINY, "--device", "meta"), "device", "devices without a backend here pass checked_device"),
    ((*SCORE[:2], *MAGNITUDE, "--out", "n" * 300), "name", "ENAMETOOLONG is not among disk_errors"),
    ((*SCORE[:2], *MAGNITUDE, "--out", "/proc/nix/s.json"), "nix", "ENOENT is not among disk_errors"),
    ((*PLAN, "--remove", "2", "--selection", "window", "--iterative"), "iterative", "--iterative is ignored for window, yet recorded"),
    ((), "see --help", "without a verb the whole help is squeezed into the error line"),
]


@pytest.mark.parametrize(("arguments", "message"), OPTIONS + [pytest.param(a, m, marks=bug(why)) for a, m, why in TRACEBACKS])
def test_options(arguments, message, refused) -> None:
    found = refused(*arguments)
    assert re.search(message, found) and len(found) < 400
