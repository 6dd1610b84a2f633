"""Faults that were silent once: nothing is lost, replaced, mixed up, or told of other weights than the files'."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import artifacts_by_hand as hand
import pytest
import torch
import zoo
from kills import SHORT, keep_every_step, killed_after
from safetensors.torch import load_file, save_file
from shrinking import shrink
from trainings import CPU, healed, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import shallower
from shallower import (
    Calibration,
    Compute,
    Protocol,
    Tasks,
    UserError,
    compare,
    drop,
    evaluate,
    inspect,
    open_model,
    prune,
    report,
    score,
)
from shallower.anatomy.loading import Checkpoint as LoadedCheckpoint
from shallower.anatomy.stack import dry_tokens
from shallower.artifacts import HealingReport, LossChange
from shallower.evaluation.tasks import _prefix as prefix_of
from shallower.reporting.card import Base
from shallower.reporting.card import card_text as card_text
from shallower.runtime.progress import shown
from shallower.surgery.proof import CACHED_TOLERANCE, cached_difference
from shallower.training.checkpoints import Checkpointer


@pytest.fixture
def source(saved, tmp_path):
    """A copy of a tiny model, to be changed."""
    return shutil.copytree(saved("llama"), tmp_path / "in")


def edit(path, **fields) -> dict:
    """Change fields of a JSON file; what it holds then."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(content))
    return content


def change(folder, act) -> None:
    """Change the weights of a model."""
    tensors = load_file(folder / "model.safetensors")
    act(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(match: str, act) -> str:
    """The one line in which something is refused."""
    with pytest.raises(UserError, match=match) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- what is carried

SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALING |= {"original_max_position_embeddings": 64}
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "repetition_penalty": 1.1}
OLD = {"rope_theta": 500000.0, "rope_scaling": SCALING, "torch_dtype": "float32", "transformers_version": "4.51.0"}
STALE = ("rust_model.ot", "64.tflite", "weights.npz", "params.json", "model.fp16.safetensors.index.json", "imatrix.dat")
LAYER = "model.layers.5.mlp.down_proj"
EXTRA = {"value_head.weight": torch.ones(1, 64), "value_head.steps": torch.arange(3)}


@dataclass
class Carried:
    """A model with all kinds of things in its folder, pruned by layer 2, then healed; what was said meanwhile."""

    source: Path
    pruned: Path
    healed: Path
    left: list[str]
    said: str

    def made(self) -> tuple[Path, Path]:
        return self.pruned, self.healed


@pytest.fixture(scope="module")
def carried(saved, text, tmp_path_factory) -> Carried:
    home = tmp_path_factory.mktemp("carried")
    source = shutil.copytree(saved("llama"), home / "in")
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    (source / "config.json").write_text(json.dumps(config | OLD | SAMPLING | {"written_by": ["nobody", 7]}))
    change(source, lambda tensors: tensors.update(EXTRA))
    coder = AutoTokenizer.from_pretrained(source)
    coder.chat_template = {name: f"{name} {{{{ messages[0].content }}}}" for name in ("default", "tool_use", "rag")}
    coder.save_pretrained(source)
    for name in STALE:
        (source / name).write_bytes(b"{}")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.json").write_text("{}")
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": {"exclude_modules": ["lm_head", LAYER]}}))
    told = io.StringIO()
    with shown(), contextlib.redirect_stderr(told):
        pruned = prune(source, drop(source, (2,)), out=home / "pruned")
        healed(home / "pruned", text, home / "healed", method="lora", tokens=256)
    return Carried(source, home / "pruned", home / "healed", pruned.left_behind, told.getvalue())


def test_a_table_by_layer_in_a_config_is_cut_once(tmp_path) -> None:
    """Gemma 4 writes settings by the layer's number, which older transformers do not know."""
    kinds = ["full_attention" if index in (1, 2, 4, 7) else "sliding_attention" for index in range(8)]
    source = zoo.save(zoo.build("gemma4_text", shrink("gemma4_text", layer_types=kinds)), tmp_path / "in")
    before = json.loads((source / "config.json").read_text())["per_layer_config"]
    prune(source, drop(source, (2,)), out=tmp_path / "out")
    after = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    assert [*before] == ["1", "2", "4", "7"] and [*after] == ["1", "3", "6"]


def test_a_config_is_edited_and_not_rewritten(carried) -> None:
    """Old spellings, sampling defaults, unknown fields stay; only the number of layers changes, and only by pruning."""
    before = json.loads((carried.source / "config.json").read_text())
    wanted = before | {"num_hidden_layers": 7}
    wanted |= {"layer_types": before["layer_types"][1:]} if "layer_types" in before else {}
    for folder in carried.made():
        assert json.loads((folder / "config.json").read_text()) == wanted
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.config.rope_parameters == SCALING | {"rope_theta": 500000.0}
        assert {key: getattr(loaded.generation_config, key) for key in SAMPLING} == SAMPLING


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_depth_is_edited_in_every_spelling(name: str, saved, tmp_path) -> None:
    """Also in those that only other readers know: none may take the pruned model for one of 8 layers."""
    source = shutil.copytree(saved(name), tmp_path / "in")
    own = "n_layer" if name == "gpt2" else "num_hidden_layers"
    other = edit(source / "config.json", n_layers=8, num_blocks=8, layers_block_type=list("abcdefgh"))
    prune(source, drop(source, (1, 4)), out=tmp_path / "out", verify=False)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after.keys() == other.keys()
    assert after[own] == 6 and after["layers_block_type"] == list("acdfgh")
    assert (after["n_layers"], after["num_blocks"]) == (6, 6)


def test_all_chat_templates_are_carried(carried) -> None:
    wanted = AutoTokenizer.from_pretrained(carried.source).chat_template
    assert wanted.keys() == {"default", "tool_use", "rag"}
    for folder in carried.made():
        assert AutoTokenizer.from_pretrained(folder).chat_template == wanted


def test_what_holds_for_the_unpruned_model_alone_stays_behind(carried) -> None:
    """Other weights, indices and descriptions of other files: only what is known is copied, and the rest is told."""
    for folder in carried.made():
        assert not {path.name for path in folder.rglob("*")} & {*STALE, "onnx"}
        found = json.loads((folder / "hf_quant_config.json").read_text())
        assert found["quantization"]["exclude_modules"] == ["lm_head", LAYER.replace("5", "4")]
    assert {*STALE, "onnx/"} <= set(carried.left) and "left behind" in carried.said


def test_tensors_that_the_model_does_not_know_are_carried(carried) -> None:
    """By training too, which has no place for them; and that is said."""
    for folder in carried.made():
        assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in EXTRA.items())
    assert "not part of the model" in carried.said and "value_head" in carried.said


def test_links_are_followed_within_the_folder_only(saved, tmp_path) -> None:
    """Outputs are uploaded; in the Hub's cache, where every file is a link to a blob beside, links are followed."""
    repository = tmp_path / "models--org--tiny"
    folder, blobs = repository / "snapshots" / "abc", repository / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(saved("llama").iterdir())):
        shutil.copy(path, blobs / str(number))
        (folder / path.name).symlink_to(blobs / str(number))
    (tmp_path / "key").write_text("a private key")
    for name in ("LICENSE", "NOTICE", "README.md", "chat_template.jinja"):
        (folder / name).symlink_to(tmp_path / "key")
    (folder / "additional_chat_templates").symlink_to(tmp_path)
    pruned = prune(folder, drop(folder, (2,)), out=tmp_path / "out", verify=False)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"tokenizer.json", "generation_config.json"} <= {path.name for path in written}
    assert not any(path.is_symlink() or b"private" in path.read_bytes() for path in written)
    assert any("LICENSE" in name for name in pruned.left_behind)


# ---------------------------------------------------------------- what is replaced


@pytest.fixture(scope="module")
def written(saved, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "made"
    prune(saved("llama"), drop(saved("llama"), (5,)), out=folder, verify=False)
    shallower.plan(saved("llama"), remove=2, criterion="magnitude", out=folder / "plan.json")
    (folder / "text.txt").write_text(zoo._SENTENCES * 8)
    return folder


@pytest.fixture
def made(written, tmp_path) -> Path:
    """A folder that this tool wrote, with a plan and a text laid into it."""
    return shutil.copytree(written, tmp_path / "made")


def test_no_folder_is_replaced_that_holds_what_is_read(made, saved, tmp_path) -> None:
    """Whatever is given: evaluations, a plan, texts to train on, to repair by or to evaluate on."""
    runs = hand.write(
        tmp_path / "runs",
        {name: one for name, one in hand.everything().items() if name.startswith(("quality", "comp"))},
    )
    both = [runs / "quality" / "dense.json", runs / "quality" / "small.json"]
    repair = shallower.RepairOptions("linear", {}, Calibration(text=str(made / "text.txt"), samples=4, length=16))
    model, other, train = (
        saved("llama"),
        tmp_path / "book.txt",
        {"train_tokens": 256, "overwrite": True, "compute": CPU},
    )
    other.write_text(zoo._SENTENCES * 8)
    acts = {
        "compare": (runs, lambda: compare(both, out=runs, overwrite=True)),
        "prune": (made, lambda: prune(model, made / "plan.json", out=made, overwrite=True)),
        "repair": (made, lambda: prune(model, drop(model, (2,)), compensating=repair, out=made, overwrite=True)),
        "itself": (made, lambda: prune(made, drop(made, (2,)), out=made, overwrite=True)),
        "heal": (made, lambda: shallower.heal(model, data=[made / "text.txt"], out=made, **train)),
        "heal eval": (
            made,
            lambda: shallower.heal(model, data=[other], eval_texts=[made / "text.txt"], out=made, **train),
        ),
    }
    for what, (folder, act) in acts.items():
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        refused("is or holds .* read here", act)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before, what


def test_a_report_never_takes_the_place_of_its_runs(tmp_path) -> None:
    """The pictures of ``runs.html`` would lie in ``runs``: also where an older report stands there."""
    runs = hand.write(tmp_path / "runs", hand.everything())
    shutil.copy(report(runs), tmp_path / "runs.html")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused("runs", lambda: report(runs, out=tmp_path / "runs.html"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- which model it is


def test_every_weight_is_in_the_fingerprint(source, tmp_path) -> None:
    """Changed in one number anywhere, a model is another one, for which no plan of the first is taken."""
    original = (source / "model.safetensors").read_bytes()
    plan, seen = drop(source, (2,)), {open_model(source).record.fingerprint}
    start = 8 + struct.unpack("<Q", original[:8])[0]
    places = [start, len(original) - 1, *range(start + 4093, len(original), (len(original) - start) // 12)]
    for place in places:
        stat = (source / "model.safetensors").stat()
        changed = bytearray(original)
        changed[place] ^= 1
        (source / "model.safetensors").write_bytes(changed)
        os.utime(source / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        seen.add(open_model(source).checkpoint.fingerprint)
    assert len(seen) == len(places) + 1
    refused("made for another model", lambda: prune(source, plan, out=tmp_path / "out"))
    (source / "model.safetensors").write_bytes(original)
    assert open_model(source).checkpoint.fingerprint == plan.model.fingerprint


def test_a_journal_of_other_weights_is_not_taken_over(source, tmp_path, monkeypatch) -> None:
    keep_every_step(monkeypatch)
    options = {"criterion": "taylor", "calibration": SHORT}
    killed_after(monkeypatch, 2, lambda: score(source, **options, out=tmp_path / "scores.json"))
    change(source, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"][:6].mul_(40))
    got = score(source, **options, out=tmp_path / "scores.json")
    assert got.scores == score(source, **options).scores


def test_a_training_does_not_go_on_with_other_texts(saved, text, tmp_path, monkeypatch) -> None:
    """Neither to train on nor to evaluate on, though their names are the same: one curve is of one text."""
    keep = Checkpointer.keep

    def killed(self, step, *rest):
        keep(self, step, *rest)
        if step == 3:
            raise OSError("killed")

    files = {name: tmp_path / f"{name}.txt" for name in ("train", "eval")}
    for path in files.values():
        shutil.copy(text, path)
    options = {"eval_texts": [files["eval"]], "eval_steps": 2, "eval_tokens": 64, "checkpoint_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "keep", killed)
        with pytest.raises(OSError, match="killed"):
            healed(saved("llama"), files["train"], tmp_path / "out", **options)
    for name, said in (("train", "data: "), ("eval", "eval_texts: ")):
        before = files[name].read_text()
        files[name].write_text(before.replace("dog", "cat"))
        refused(
            rf"is of another run \({said}",
            lambda: healed(saved("llama"), files["train"], tmp_path / "out", resume=True, **options),
        )
        files[name].write_text(before)
    other = options | {"eval_steps": 3, "resume": True}
    given = (saved("llama"), files["train"], tmp_path / "out")
    refused(r"is of another run \(eval_steps: ", lambda: healed(*given, **other))
    found = healed(saved("llama"), files["train"], tmp_path / "out", resume=True, **options)
    assert [row.step for row in found.rows if row.eval] == [0, 2, 4, 6]


def test_what_is_told_of_a_healed_model_is_of_its_files(text, tmp_path) -> None:
    """Trained in fp32 and stored in bf16: the last perplexity is that of what was stored, and the rounding is told."""
    folder = zoo.save("llama", tmp_path / "model", dtype=torch.bfloat16)
    options = {"lr": 3e-4, "eval_texts": [text], "eval_tokens": 256, "eval_steps": 6}
    found = healed(folder, text, tmp_path / "out", **options)
    last = found.rows[-1]
    how = {"protocol": Protocol(length=32, max_tokens=256), "compute": Compute("fp32", "cpu")}
    said = evaluate(tmp_path / "out", texts=[text], **how).perplexity["book"]
    assert last.eval["book"].nll == pytest.approx(said.nll, rel=1e-7)
    assert last.eval_unrounded["book"].nll != pytest.approx(said.nll, rel=1e-7)
    assert "rounding to bfloat16" in found.reloaded.logits and 0 < found.reloaded.difference < 3e-2


# ---------------------------------------------------------------- what the proof looks at

GENERATION = [
    *({"eos_token_id": end} for end in ("first", "sixth", "all")),
    {"do_sample": True, "num_return_sequences": 3, "temperature": 0.1},
    {"num_beams": 4},
    {"stop_strings": ["END"]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
    {"suppress_tokens": list(range(500)), "begin_suppress_tokens": [7]},
    {"max_length": 13, "max_time": 1e-9},
    {"guidance_scale": 2.0},
    {"use_cache": False},
    {"cache_implementation": "static"},
]


@pytest.fixture(scope="module")
def opened(saved):
    return open_model(saved("llama"), CPU).module


@pytest.mark.parametrize("defaults", GENERATION, ids=lambda one: next(iter(one)))
def test_the_check_of_the_cache_knows_no_defaults_of_the_model(defaults, opened) -> None:
    """The same number as without them: the same tokens are decoded, all of them, cached; and the defaults stay."""
    tokens = dry_tokens(zoo.VOCAB, 2, 32)
    ends = {"first": int(tokens[0, 12]), "sixth": int(tokens[0, 17]), "all": list(range(zoo.VOCAB))}
    if "eos_token_id" in defaults:
        defaults = {"eos_token_id": ends[defaults["eos_token_id"]]}
    wanted = cached_difference(opened, tokens, "the model")
    before, opened.generation_config = opened.generation_config, GenerationConfig(**defaults)
    try:
        assert cached_difference(opened, tokens, "the model") == wanted
        assert 0 < wanted < CACHED_TOLERANCE
        assert opened.generation_config.to_diff_dict().items() >= GenerationConfig(**defaults).to_diff_dict().items()
    finally:
        opened.generation_config = before


def test_a_model_with_odd_defaults_is_pruned(source, tmp_path) -> None:
    defaults = {
        "eos_token_id": list(range(zoo.VOCAB)),
        "do_sample": True,
        "num_return_sequences": 3,
        "stop_strings": ["END"],
    }
    edit(source / "generation_config.json", **defaults)
    verified = prune(source, drop(source, (2, 3)), out=tmp_path / "out").verified
    assert 0 < verified.cached_difference < CACHED_TOLERANCE and verified.logits == "bit for bit"
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert defaults.items() <= written.items()


def fill(tensors, rows, value) -> None:
    tensors["model.embed_tokens.weight"][rows] = value


def test_rows_of_ids_that_no_text_has_do_not_matter(source, text, tmp_path) -> None:
    """Some published models leave them uninitialised."""
    used = set(AutoTokenizer.from_pretrained(source)(text.read_text()).input_ids)
    unused = sorted({*range(zoo.VOCAB)} - used)
    assert set(unused) & set(dry_tokens(zoo.VOCAB, 2, 32).flatten().tolist())
    how = {"texts": [text], "protocol": Protocol(length=32, max_tokens=256), "compute": CPU}
    wanted = evaluate(source, **how).perplexity["book"].value
    change(source, lambda tensors: fill(tensors, unused, float("nan")))
    assert evaluate(source, **how).perplexity["book"].value == wanted
    verified = prune(source, drop(source, (2, 3)), out=tmp_path / "out").verified
    assert verified.logits == "bit for bit"


def test_broken_rows_of_ids_that_are_used_are_named(source, text, tmp_path) -> None:
    change(source, lambda tensors: fill(tensors, slice(4, None), float("nan")))
    how = {"texts": [text], "protocol": Protocol(length=32, max_tokens=64), "compute": CPU}
    refused("NaN|not finite|embed", lambda: evaluate(source, **how))


# ---------------------------------------------------------------- one line, from every verb


@pytest.mark.parametrize("layers", [1, 4, 7, 9])
def test_another_depth_than_that_of_the_files_is_told_by_every_verb(layers: int, source, text, tmp_path) -> None:
    """Not by ``prune`` alone: fewer layers would be measured without a word, more would be drawn at random."""
    plan = drop(source, (2,))
    edit(source / "config.json", num_hidden_layers=layers)
    acts = {
        "inspect": lambda: inspect(source),
        "score": lambda: score(source, criterion="magnitude"),
        "plan": lambda: shallower.plan(source, remove=1, criterion="magnitude"),
        "evaluate": lambda: evaluate(source, texts=[text], protocol=Protocol(length=32)),
        "prune": lambda: prune(source, plan, out=tmp_path / "out", verify=False),
        "heal": lambda: healed(source, text, tmp_path / "out"),
    }
    for act in acts.values():
        said = refused("8 layers|lacks weights|layers.8", act)
        assert "layers" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [1000000, [None], True, [7], {"a": 1}, "LlamaForCausalLM"])
@pytest.mark.parametrize("field", ["architectures", "auto_map"])
def test_fields_of_a_config_of_another_type(field: str, value, source) -> None:
    """They are passed over, or named in one line."""
    edit(source / "config.json", **{field: value})
    try:
        assert inspect(source).model.layers == 8
    except UserError as error:
        assert "\n" not in str(error) and "config.json" in str(error)


HEADERS = {
    "unclosed": "{'descr': '<i8', 'fortran_order': False, 'shape': (3, 16, }",
    "beyond a long": "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999999999999, 2), }",
    "petabytes": "{'descr': '<i8', 'fortran_order': False, 'shape': (3, 100000000000000), }",
    "negative": "{'descr': '<i8', 'fortran_order': False, 'shape': (-3, -16), }",
    "no type": "{'descr': '<q9', 'fortran_order': False, 'shape': (3, 16), }",
    "deep": "{'descr': " + "(" * 900 + ", 'fortran_order': False, 'shape': (3, 16), }",
    "nothing": "",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_of_token_files(kind: str, saved, tmp_path) -> None:
    header = HEADERS[kind].encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    (tmp_path / "ids.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(384))
    given = Calibration(tokens=str(tmp_path / "ids.npy"))
    refused(
        r"ids\.npy (is not a \.npy file|has the shape)",
        lambda: score(saved("llama"), criterion="block_influence", calibration=given),
    )


@pytest.mark.parametrize("half", ["\ud800", "a\udc80b"])
def test_half_a_character_is_told_in_one_line(half: str, made, saved, tmp_path) -> None:
    """In a record of ours, in a plan, in a text: JSON can spell what UTF-8 cannot hold."""
    side = json.loads((made / "shallower.json").read_text())
    side["plan"]["selection"] = half
    (made / "shallower.json").write_text(json.dumps(side))
    edit(made / "plan.json", selection=half)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": f"The dog {half} saw the fox. " * 99}))
    texts = Calibration(text=str(tmp_path / "text.jsonl"), samples=2, length=16)
    refused("half a character", lambda: shallower.card(made))
    refused("half a character", lambda: prune(saved("llama"), made / "plan.json", out=tmp_path / "out"))
    refused("half a character", lambda: score(saved("llama"), criterion="block_influence", calibration=texts))


EVIL = "x`\n\n<script>alert(1)</script>\n\n# Heading [a](javascript:alert(1)) ![b](http://c/d.png) | e |\n- f\n\n```\n`"


def test_nothing_in_a_card_is_markup_that_an_artifact_says() -> None:
    """Whatever a record holds: names, settings, sources, what was changed, what was trained on."""
    model = replace(hand.DENSE, source=EVIL)
    tokens = replace(hand.TOKENS, source=EVIL, hash=EVIL)
    plan = hand.plan(model, selection=EVIL, criterion=EVIL, settings={EVIL: EVIL}, calibration=tokens)
    pruned = hand.pruned(plan, "small0", method=EVIL)
    training = HealingReport(EVIL, {}, EVIL, EVIL, 5, 1, LossChange(2.0, 1.0), EVIL)
    proof = replace(hand.PROOF, logits=EVIL, dtype=EVIL)
    pruned = replace(pruned, config_changes=[EVIL], healing=[training], verified=proof)
    figures = {"perplexity": {EVIL: hand.text(3.0)}, "tasks": {EVIL: hand.task(0.5)}}
    measured = replace(hand.everything()["quality/small.json"], **figures)
    shape = card_text(hand.pruned(hand.plan(), "small0"), "name", Base())
    text = card_text(pruned, EVIL, Base(None, {"license": EVIL, "language": [EVIL]}), evaluations=[measured])
    body = text.split("---", 2)[2]
    above, rest = body.split("## How to load it\n\n")
    code, below = rest.split("\n\n## How it was made")
    assert code.startswith("````python\n") and code.endswith("\n````") and code.count("````") == 2  # closed at its end
    told = f"{above}## How to load it\n\n## How it was made{below}"
    assert "<script" not in told and "`<" not in told and not re.search(r"(?<!\\)\]\((javascript|http:)", told)
    headings = [[line for line in one.splitlines() if line.startswith("#")][1:] for one in (told, shape)]
    assert headings[0] == headings[1] and told.count("\n|") == shape.count("\n|") + 2  # a row for each figure


def test_without_special_tokens_a_line_break_stands_in_front(saved) -> None:
    """Of an answer without a question, in tasks; where there is a BOS or EOS the harness takes that."""
    coder = AutoTokenizer.from_pretrained(saved("llama"))
    assert prefix_of(coder) is None
    coder.bos_token = None
    assert prefix_of(coder) is None
    coder.eos_token = coder.pad_token = coder.unk_token = None
    assert coder.decode([prefix_of(coder)]) == "\n"


@pytest.mark.slow  # the harness alone takes long to load
@pytest.mark.filterwarnings("ignore")
def test_tasks_need_no_special_tokens(source, tmp_path) -> None:
    """A tokenizer may have none at all: the answers are measured all the same."""
    pytest.importorskip("lm_eval")
    rows = [{"goal": f"How to do {n}?", "sol1": "by hand " * n, "sol2": "never", "label": n % 2} for n in range(1, 4)]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in itertools.chain(source.glob("special_tokens_map.json"), source.glob("tokenizer_config.json")):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if not key.endswith("_token")}))
    assert AutoTokenizer.from_pretrained(source).all_special_tokens == []
    found = evaluate(source, tasks=Tasks(("piqa",), tmp_path)).tasks["piqa"]
    assert found.count == 3 and set(found.items) <= {0.0, 1.0}


def test_a_written_model_that_cannot_be_loaded_is_told_without_the_folder_that_is_gone(
    source, tmp_path, monkeypatch
) -> None:
    model, loads = open_model(source), LoadedCheckpoint.load_reporting
    chosen = drop(model, [2])

    def load(self, **how):
        if self.source != model.checkpoint.source:
            raise UserError(f"{self.source}: transformers cannot load it (no place for it)")
        return loads(self, **how)

    monkeypatch.setattr(LoadedCheckpoint, "load_reporting", load)
    told = refused("the written model: transformers cannot load it", lambda: prune(model, chosen, out=tmp_path / "out"))
    assert str(tmp_path) not in told and not (tmp_path / "out").exists()
