"""Where models come from: the Hub, .gguf files, quantised checkpoints; read whole, or refused before any work."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
import pytest
import torch
import zoo
from packed import FORMATS, save_packed
from safetensors.torch import load_file, save_file
from shrinking import shrink
from transformers import AutoModelForCausalLM

import shallower
from shallower import UserError, drop, inspect, open_model, prune, score
from shallower.storage.index import read_index, read_metadata

SHA = "0123456789abcdef0123456789abcdef01234567"
KEPT = (0, 2, 3, 5, 6, 7)  # without layers 1 and 4


# ---------------------------------------------------------------- the Hub


class Hub(BaseHTTPRequestHandler):
    """Just so much of the Hub as its client asks for; what was sent of which file is kept in ``server.log``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _answer(self, body: bytes = b"", status: int = 200, size: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body) if size is None else size), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, content) -> None:
        self._answer(json.dumps(content).encode(), Content_Type="application/json")

    def _about(self, file: Path) -> dict:
        raw = file.read_bytes()
        about = {"type": "file", "path": file.name, "oid": hashlib.sha1(raw).hexdigest(), "size": len(raw)}
        if file.suffix in (".safetensors", ".bin"):
            about["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 9}
        return about

    def do_POST(self) -> None:
        folder = self.server.home / self.path.split("/")[4]
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = [value for key, value in parse_qsl(asked) if key == "paths"]
        self._json([self._about(folder / name) for name in names if (folder / name).is_file()])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "phase":
            self.server.log.append((parts[1], "phase", 0, 0))
            self._answer()
        elif parts[0] == "api":
            files = sorted((self.server.home / parts[3]).iterdir())
            siblings = [{"rfilename": file.name} for file in files]
            about = {
                "id": f"org/{parts[3]}",
                "sha": SHA,
                "private": False,
                "tags": [],
                "downloads": 0,
                "siblings": siblings,
            }
            self._json([self._about(file) for file in files] if "tree" in parts else about)
        else:
            self._file(self.server.home / parts[1] / parts[-1])

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._answer(status=404, X_Error_Code="EntryNotFound")
            return
        about, raw, status = self._about(file), file.read_bytes(), 200
        etag = about["lfs"]["oid"] if "lfs" in about else about["oid"]
        known = {"ETag": f'"{etag}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            known["Content_Range"] = f"bytes {start}-{min(int(end or len(raw)), len(raw) - 1)}/{len(raw)}"
            raw, status = raw[int(start) : int(end or len(raw)) + 1], 206
        if self.command == "HEAD":
            self._answer(status=status, size=len(raw), **known)
            return
        self.server.log.append((f"{file.parent.name}/{file.name}", "GET", len(raw), file.stat().st_size))
        self._answer(raw, status, **known)


ASK = """
import functools, os, sys, urllib.request, shallower
from huggingface_hub import constants
assert constants.ENDPOINT == os.environ["HF_ENDPOINT"]
for name in sys.argv[1:]:
    score = functools.partial(shallower.score, criterion="magnitude")
    for phase, act in (("inspect", shallower.inspect), ("score", score)):
        urllib.request.urlopen(f"{constants.ENDPOINT}/phase/{phase}-{name}").read()
        print(phase, name, act(f"org/{name}").model.fingerprint)
"""


@contextmanager
def serving(home: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.home, server.log, server.daemon_threads = home, [], True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_of_the_hub_only_what_is_needed_is_fetched(saved, tmp_path) -> None:
    """``inspect`` reads headers alone; else those weights come that the index names, no other copies, and only once."""
    home = tmp_path / "hub"
    for name, size in (("shards", "400KB"), ("single", None)):
        zoo.save("llama", home / name, max_shard_size=size)
        others = ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin")
        for other in others:
            save_file({"lm_head.weight": torch.zeros(300, 300)}, home / name / other)
    with serving(home) as server:
        given = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
        }
        given |= {
            "SHALLOWER_CACHE": str(tmp_path / "own"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "*",
        }
        command = [sys.executable, "-c", ASK, "shards", "single"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | given, timeout=120)
    assert done.returncode == 0, done.stderr
    said = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in done.stdout.splitlines()}
    sent: dict[str, list[tuple[str, int, int]]] = {}
    for what, kind, count, size in server.log:
        if kind == "phase":
            fetched = sent[what] = []
        else:
            fetched.append((what, count, size))
    large = (".safetensors", ".bin")
    for name in ("shards", "single"):
        named = {path.name for path in (home / name).glob("model*.safetensors")} - {*others}
        weights = {f"{name}/{one}" for one in named}
        assert len(weights) == (1 if name == "single" else 4)
        heads = [row for row in sent[f"inspect-{name}"] if row[0].endswith(large)]
        whole = [row for row in sent[f"score-{name}"] if row[0].endswith(large)]
        assert {what for what, *_ in heads} == weights
        assert all(count < size for _, count, size in heads), "a whole file was sent for its header"
        assert sorted(what for what, *_ in whole) == sorted(weights)
        assert all(count == size for _, count, size in whole)
        wanted = open_model(home / name).record.fingerprint
        assert said[f"inspect {name}"] == said[f"score {name}"] == wanted
    cached = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert not cached & set(others)


# ---------------------------------------------------------------- .gguf files

TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def test_a_folder_may_be_called_like_a_file(saved, tmp_path) -> None:
    """As ``prune`` writes it where ``out`` ends so."""
    folder = shutil.copytree(saved("llama"), tmp_path / "model.gguf")
    assert open_model(folder).record.layers == 8


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return f"{TENSORS[name.removesuffix('.weight')]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{TENSORS[rest.removesuffix('.weight')]}.weight"


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries or keys with the two halves of each head interleaved, as .gguf files of this family hold them."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, metadata: dict | None = None, factors=None, without: str = "nothing") -> Path:
    """A llama as a .gguf file of float32, with further metadata, less the tensors whose names contain ``without``."""
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    numbers = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    for name, value in numbers.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", config.rope_parameters["rope_theta"])
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(config.vocab_size - 3))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([1] * len(words))
    for name, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(name, value)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = next((number for part, number in heads.items() if part in name), 0)
        if without not in name:
            writer.add_tensor(gguf_name(name), (paired(tensor, count) if count else tensor).contiguous().numpy())
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("SHALLOWER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scaled(**rope):
    """A llama whose rotary angles are scaled."""
    return zoo.build("llama", shrink("llama", rope_parameters={"rope_theta": 10000.0, **rope}))


LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_the_rotary_scaling_of_a_gguf_is_kept(kind: str, cache, tmp_path) -> None:
    """In the metadata or in a tensor of factors: pruned, it gives the logits of the original without these layers."""
    model = scaled(rope_type=kind, **{"linear": {"factor": 4.0}, "llama3": LLAMA3}.get(kind, {}))
    plain = 10000.0 ** -(torch.arange(0, model.config.head_dim, 2) / model.config.head_dim)
    factors = plain / model.model.rotary_emb.inv_freq if kind == "llama3" else None
    assert kind != "llama3" or len(factors.round(decimals=3).unique()) > 2  # not all are scaled alike
    file = write_gguf(tmp_path / "model.gguf", model, LINEAR if kind == "linear" else {}, factors)
    prune(file, drop(file, (1, 4)), out=tmp_path / "out")
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in KEPT)
    tokens = zoo.tokens(length=64)
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(tokens, use_cache=False).logits
        wanted = model(tokens, use_cache=False).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("metadata", "factors", "without", "said"),
    [
        ({"split.no": 0, "split.count": 2}, None, "layers.5", "part 1 of 2"),
        ({"split.no": 1, "split.count": 2}, None, "layers.0", "part 2 of 2"),
        ({}, None, "layers.5", r"lacks|layers"),
        ({}, None, "layers.5.mlp.up_proj", "lacks"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
            None,
            "nothing",
            "rope.scaling.type = yarn",
        ),
        ({}, [1.0, 3.0, 1.0, 5.0, 1.0, 2.0, 1.0, 9.0], "nothing", "rope_freqs.weight fit no scaling"),
    ],
)
def test_a_gguf_that_is_not_whole_or_understood_is_refused(metadata, factors, without, said, cache, tmp_path) -> None:
    """Nothing is drawn at random, nothing that defines the model is dropped, and nothing stays in the cache."""
    file = write_gguf(tmp_path / "model.gguf", scaled(rope_type="default"), metadata, factors, without)
    with pytest.raises(UserError, match=said) as refused:
        open_model(file).record  # noqa: B018
    assert "\n" not in str(refused.value)
    if "split.count" in metadata:
        with pytest.raises(UserError, match=said):
            inspect(file)
    elif without == "nothing":  # its header is enough for what copies bytes
        assert len(inspect(file).removable) == 8
    assert not [path for path in cache.rglob("*") if path.suffix == ".safetensors"]


# ---------------------------------------------------------------- quantised checkpoints


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """``packed(method)``: the folder of a tiny model of 4 layers whose matrices are held as the method holds them."""
    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            made[method] = save_packed(method, tmp_path_factory.mktemp("packed") / method)
        return made[method]

    return get


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """Names of the long works that were begun: loading weights, writing weights."""
    works: list[str] = []
    for owner, name in ((AutoModelForCausalLM, "from_pretrained"), (shallower.surgery.rewrite, "write_shards")):
        true = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, true=true, name=name, **k: (works.append(name), true(*a, **k))[1])
    return works


@pytest.fixture
def given(tmp_path) -> str:
    np.save(tmp_path / "ids.npy", zoo.tokens(2, 16).numpy())
    return str(tmp_path / "ids.npy")


@pytest.mark.parametrize("method", FORMATS)
def test_quantised_files_are_inspected_and_pruned_unproven(method: str, packed, begun, tmp_path) -> None:
    """That needs nothing but the files: every tensor of what stays is there, byte for byte, and so is their config."""
    folder = packed(method)
    model = open_model(folder)
    found = inspect(model)
    assert (found.model.layers, found.removable) == (4, [0, 1, 2, 3]) and not begun
    pruned = prune(model, drop(model, (1,)), out=tmp_path / "out", verify=False)
    assert pruned.plan.kept == [0, 2, 3] and begun == ["write_shards"]
    old, new = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    moved = {0: 0, 2: 1, 3: 2}
    wanted = {
        name.replace(f"layers.{index}.", f"layers.{number}."): name
        for index, number in moved.items()
        for name in old
        if f"layers.{index}." in name
    }
    wanted |= {name: name for name in old if "layers." not in name}
    assert new.keys() == wanted.keys() == read_index(tmp_path / "out").keys()
    for name, before in wanted.items():
        assert new[name].dtype == old[before].dtype
        assert torch.equal(new[name].view(torch.uint8), old[before].view(torch.uint8))
    said = [read_metadata([one / "model.safetensors"]) for one in (folder, tmp_path / "out")]
    back = {number: index for index, number in moved.items()}

    def original(name: str) -> str:
        return re.sub(r"layers\.(\d+)", lambda match: f"layers.{back[int(match[1])]}", name)

    listed = json.loads(said[1].pop("tensor_names", "[]"))
    assert said[1] == {name: said[0][original(name)] for name in said[1]}
    assert not listed or {*listed} == said[1].keys() - {"format"}
    assert len(said[1]) == len([name for name in said[0] if "layers.1." not in name and name != "tensor_names"])
    configs = [json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "out")]
    assert configs[0][FORMATS[method].field] == configs[1][FORMATS[method].field]


@pytest.mark.parametrize("method", FORMATS)
def test_quantised_models_work_or_are_refused_before_any_work(method: str, packed, given, begun, tmp_path) -> None:
    """By every verb that reads weights: in one line, which says what is missing, with nothing read or written yet."""
    model, calibration = open_model(packed(method), device="cpu"), shallower.Calibration(tokens=given)
    greedy = shallower.SelectionOptions("greedy", keep_first=1, keep_last=1)
    verbs = {
        "score": lambda: score(model, criterion="block_influence", calibration=calibration),
        "score weights": lambda: score(model, criterion="magnitude"),
        "plan": lambda: shallower.plan(model, remove=1, choosing=greedy, calibration=calibration),
        "evaluate": lambda: shallower.evaluate(model, tokens=given, protocol=shallower.Protocol(length=16)),
        "prune": lambda: prune(model, drop(model, (1,)), out=tmp_path / "out"),
    }
    found, wrong = {}, []
    for verb, act in verbs.items():
        model.unload()
        begun.clear()
        try:
            found[verb] = act()
        except UserError as error:
            said = str(error)
            if (
                "\n" in said
                or len(said) > 500
                or FORMATS[method].said not in said
                or not re.search("is quantised|are packed", said)
            ):
                wrong.append(f"{verb} says {said}")
            if begun and "are packed" not in said:  # which only the loaded layers show
                wrong.append(f"{verb} is refused after {begun}: {said}")
    assert not wrong
    assert (tmp_path / "out").exists() == ("prune" in found)
    assert all(np.isfinite(found[verb].scores).all() for verb in found if verb.startswith("score"))
    assert "prune" not in found or found["prune"].proof
    if method in ("fp8", "mxfp4", "metal"):  # a CPU can widen them
        assert {"score", "plan", "evaluate", "prune"} <= found.keys()


@pytest.mark.parametrize("method", FORMATS)
def test_quantised_weights_are_never_trained_or_changed(method: str, packed, text, given, begun, tmp_path) -> None:
    """Packed numbers and their scales belong together; that is said before anything is read."""
    folder, out = packed(method), tmp_path / "out"
    plan = drop(folder, (1,))
    repair = shallower.RepairOptions("linear", {}, shallower.Calibration(tokens=given))
    verbs = {
        "heal": lambda: shallower.heal(folder, data=[text], train_tokens=256, out=out),
        "compensate": lambda: prune(folder, plan, out=out, compensating=repair),
        "convert": lambda: prune(folder, plan, out=out, save_dtype="bf16"),
    }
    for verb, act in verbs.items():
        with pytest.raises(UserError, match=rf"is quantised \({FORMATS[method].said}\)") as refused:
            act()
        assert "\n" not in str(refused.value) and not begun, verb
        assert not out.exists()


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes-8", "gptq", "metal", "modelopt"])
def test_packed_weights_of_which_the_config_says_nothing_are_refused(method: str, packed, tmp_path) -> None:
    """Their bytes would be taken for weights: some programs say how they are packed in files of their own only."""
    folder = shutil.copytree(packed(method), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config.pop(FORMATS[method].field)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"holds packed weights .* no quantization_config") as refused:
        inspect(folder)
    assert "\n" not in str(refused.value)


def test_masks_in_a_file_are_no_packed_weights(saved, tmp_path) -> None:
    """Files of old programs hold causal masks as bytes, for which the model has no place."""
    folder = shutil.copytree(saved("gpt2"), tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for n in range(8)}
    save_file(tensors | masks, folder / "model.safetensors", {"format": "pt"})
    assert inspect(folder).model.layers == 8


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes-4"])
def test_quantised_weights_that_do_not_fit_are_refused(method: str, packed, given, begun, monkeypatch) -> None:
    """They cannot be read one layer at a time; those that loading unpacks take more than on the disk."""
    model = open_model(packed(method), device="cpu")
    files, needed = model.checkpoint.bytes, model.checkpoint.loaded_bytes()
    assert needed == (2 * model.record.parameters if method == "fp8" else files)
    monkeypatch.setattr("shallower.anatomy.loading.total_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match=r"its weights take .* GB when loaded") as refused:
        shallower.evaluate(model, tokens=given, protocol=shallower.Protocol(length=16))
    assert "\n" not in str(refused.value) and not begun


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("method", ["fp8", "mxfp4", "metal"])
def test_unpacked_weights_have_the_dtype_that_is_asked_for(method: str, dtype: str, packed) -> None:
    """Of some methods transformers makes bf16 whatever is asked for; layers of two dtypes do not run."""
    module = open_model(packed(method), device="cpu", dtype=dtype).module
    wanted = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    assert {one.dtype for one in module.parameters()} <= {wanted, torch.float32}  # some are kept wide
    assert torch.isfinite(module(input_ids=zoo.tokens(1, 8)).logits).all()


def test_names_of_another_stack_keep_their_numbers(saved, tmp_path) -> None:
    """In quantisation configs of a model with a vision tower, with numbered layers too; the text's get new ones."""
    source = shutil.copytree(saved("gemma3"), tmp_path / "in")
    names = [name for name, _ in AutoModelForCausalLM.from_pretrained(source).named_modules() if ".layers." in name]
    other = [name for name in names if "vision" in name and name.endswith("fc1")]
    own = next(name for name in names if "language_model" in name and name.endswith("layers.5.mlp.down_proj"))
    assert other
    pattern = re.escape(own.replace("layers.5", "layers.4"))
    quantised = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "modules_to_not_convert": [*other, own, pattern, "lm_head"],
    }
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": {"exclude_modules": [*other, own]}}))
    prune(source, drop(source, (0, 3)), out=tmp_path / "out", verify=False)
    wanted = [*other, own.replace("layers.5.", "layers.3.")]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    *kept, changed, head = config["quantization_config"]["modules_to_not_convert"]
    assert (kept, head) == (wanted, "lm_head")
    assert [name for name in names if re.fullmatch(changed, name)] == [own.replace("layers.5", "layers.2")]
    beside = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert beside["quantization"]["exclude_modules"] == wanted
