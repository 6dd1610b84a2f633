"""Every causal-LM type of transformers: remove layers, reload, compare; ``make families`` writes what happened.

Each type is built tiny from its config (``zoo.shrink``), with its layer rules set awkwardly, and pruned three times,
once with layer 0 among the removed. What generic shrinking cannot guess stands in ``SETTINGS``. Each type runs in a process of its
own with a time limit, and its result is written before the next one starts, so the command can be stopped and resumed:
a result is kept as long as the versions, the type's settings and the code that decides are what they were.
"""

import argparse
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's package, whatever is installed

import torch
import transformers
import zoo
from checks import EFFECT, LOGITS_TOLERANCE, compare
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shallower import UserError, drop, open_model, prune
from shallower.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
SECONDS = 240  # per type
DECIDING = (
    "shallower/anatomy",
    "shallower/surgery.py",
    "shallower/proof.py",
    "shallower/shards.py",
    "shallower/tensors.py",
    "tests/checks.py",
)


@dataclass(frozen=True)
class Setting:
    """How one type is tried.

    Attributes:
        config: overrides of the shrunk config; of a multimodal type, of its text part's own type as well.
        removals: sets of layers that have to come out exact.
        illegal: sets that have to be refused, because no config describes what is left.
        note: why these.
        absent: why the type is not built at all.
    """

    config: dict = field(default_factory=dict)
    removals: tuple[tuple[int, ...], ...] = zoo.REMOVALS
    illegal: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    absent: str = ""


def _every(period: int, special: str, other: str) -> list[str]:
    return [other if (index + 1) % period else special for index in range(zoo.LAYERS)]


_SOUND = "audio tokens need an audio encoder or a codec beside the text"
_DRAFTER = "a drafter: it reads the keys and values of the model that it drafts for"
_ROPE_BY_KIND = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_STEP = {"time_step_min": 1e-9}
_STEP_NOTE = "time_step_min clamps the prefill alone: with a larger one the unpruned model's cache goes wrong"
_SWA = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16}
_MAKERS_STAY = ((2,), (1, 3), (0, 3, 6))
_MAKERS_GO = ((1, 4), (0, 3, 5))
_MAKERS_NOTE = "layers 4 and 5, which make keys and values for the last two, cannot go"
SETTINGS: dict[str, Setting] = {
    "dots3_note_text": Setting(
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 24,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        }
    ),
    "dots1": Setting({"n_shared_experts": 1}),
    "gpt_neo": Setting({"attention_types": [[["global", "local"], 4]]}),
    "lfm2_moe": Setting({"layer_types": _every(3, "full_attention", "conv")}),
    "mamba2": Setting({"num_heads": 8, "head_dim": 16}),
    "qwen4_exp_text": Setting(
        {
            "ple_layer_ids": [6, 7],
            "ngram_vocab_size_base": 64,
            "heads_per_ngram": 2,
            "split_ngram_parts": 2,
            "hc_lowrank": 8,
            "hc_count": 2,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
        removals=((2,), (1, 4), (0, 3, 6)),
        illegal=((0, 3, 5),),
        note="ple_layer_ids count from 1; the sizes of a layer's hash tables depend on how many tables come before it",
    ),
    "cohere_compass_text": Setting({"layer_types": _every(3, "full_attention", "sliding_attention"), "rope_parameters": _ROPE_BY_KIND}),
    "dbrx": Setting(
        {
            "d_model": 64,
            "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0, "kv_n_heads": 2},
            "ffn_config": {"hidden_size": 64, "moe_top_k": 2},
        }
    ),
    "dots3_note": Setting(
        {
            "vision_config": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32, "adapter_out_dim": 64},
            "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 64},
        }
    ),
    "longcat_flash": Setting({"num_hidden_layers": 16, "num_layers": 8, "head_dim": 8, "zero_expert_num": 2}),
    "reformer": Setting({"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 48], "attn_layers": ["local", "lsh"] * 4}),
    "roc_bert": Setting({"pronunciation_embed_dim": 16, "shape_embed_dim": 16, "shape_vocab_size": zoo.VOCAB}),
    "inkling_text": Setting(_SWA),
    "inkling2_text": Setting(
        _SWA,
        removals=((2,), (1, 4), (3, 5, 7)),
        illegal=((0, 3, 5),),
        note="layer 0 reads no earlier block, so no other layer can be first",
    ),
    "gemma3n": Setting(absent="its image half needs a package that is not installed; the text part is a type of its own"),
    "gemma4_assistant": Setting(absent=_DRAFTER),
    "gemma4_unified_assistant": Setting(absent=_DRAFTER),
    "musicgen": Setting(absent=_SOUND),
    "musicgen_melody": Setting(absent=_SOUND),
    "xmod": Setting({"default_language": "en_XX"}),
    "zamba": Setting(
        {"layers_block_type": ["linear_attention", "linear_attention", *["hybrid", "linear_attention"] * 3]},
        illegal=((2, 4),),
        note="layers 2, 4 and 6 share one block; transformers cannot build a model with one such layer",
    ),
    "zamba2": Setting(
        {"layers_block_type": _every(3, "hybrid", "linear_attention"), "head_dim": 32, "num_key_value_heads": 4, **_STEP},
        removals=((1,), (1, 4), (0, 3, 6)),
        illegal=((2,), (0, 3, 5)),
        note=f"layers 2 and 5 share a block that holds an adapter for each of them, so neither can go; {_STEP_NOTE}",
    ),
    "zaya": Setting(
        {"num_experts_per_tok": 1},
        removals=((2,), (1, 4), (3, 5, 6)),
        illegal=((0, 3, 5),),
        note="the router of layer 0 alone reads no earlier router's state, so no other layer can be first",
    ),
    "bamba": Setting({"attn_layer_indices": [1, 4, 6]}),
    "granitemoehybrid": Setting({"layer_types": [*_every(3, "full_attention", "linear_attention")[:-1], "full_attention"]}),
    "beam": Setting(
        removals=((7,), (6, 7), (4, 5, 6, 7)),
        illegal=((2,), (0,)),
        note="attn_residual_add_idx depends on the layer's index: only the tail may go",
    ),
    "gemma3n_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "gemma4_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "gemma4_unified_text": Setting(removals=_MAKERS_STAY, illegal=_MAKERS_GO, note=_MAKERS_NOTE),
    "hy_v4": Setting(
        {"indexer_types": ["full", "shared", "shared", "full", "shared", "full", "full", "shared"]},
        removals=((2,), (1, 4), (0, 1, 2)),
        illegal=((0, 3, 5),),
        note="a shared indexer needs a full one before it",
    ),
    "nemotron_h": Setting(
        {
            **_STEP,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention", "moe", "mlp"],
        },
        note=_STEP_NOTE,
    ),
    "prophetnet": Setting({"num_decoder_layers": 8, "num_decoder_attention_heads": 4}),
    "moshi": Setting({"sliding_window": 64}, note="with a window shorter than the text the unpruned model's cache goes wrong"),
    "rwkv": Setting(
        {"rescale_every": 0},
        removals=((2,), (1, 4), (3, 5, 6)),
        illegal=((0, 3, 5),),
        note="layer 0 alone normalises its input; with rescale_every the stream is halved after every sixth layer, also when earlier ones "
        "are gone: then the logits agree to 1e-4 only, because the norms' epsilon weighs more",
    ),
    "blt": Setting({"encoder_hash_byte_group_vocab": 64}, note="its forward makes a cache from a config of four parts that names no depth"),
    "xlm": Setting({"causal": True}),
    "xlnet": Setting({"attn_type": "uni"}),
    "xlstm": Setting({"qk_dim_factor": 1.0}, note="with narrower queries the unpruned model cannot use its cache"),
    "minimax": Setting({"block_size": 8, "sliding_window": None}, note="with a sliding window the unpruned model's cache goes wrong"),
    "ernie4_5_moe": Setting({"moe_layer_start_index": 2, "moe_layer_end_index": 6}),
    "jamba": Setting(
        {"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
        removals=((4, 5, 6, 7), (0, 1, 2, 3), (6, 7)),
        illegal=((2,), (1, 4)),
        note="its config knows periods only: whole periods or layers of the tail may go",
    ),
    "modernbert-decoder": Setting(
        removals=((2,), (1, 4), (3, 5)), illegal=((0, 3, 5),), note="layer 0 has no attention norm, so no other layer can be first"
    ),
    "diffllama": Setting(
        removals=((7,), (6, 7), (4, 5, 6, 7)), illegal=((2,), (0,)), note="lambda_init depends on the layer's index: only the tail may go"
    ),
    "minicpm3": Setting({"dim_model_base": 64}, note="scale_depth / sqrt(num_hidden_layers)"),
    "llama4_text": Setting({"num_experts_per_tok": 1, "floor_scale": 8}, note="moe_layers is a list of indices"),
}


# ---------------------------------------------------------------- one type


def setting(name: str) -> Setting:
    """The type's own setting; a multimodal type takes that of its text part."""
    own = SETTINGS.get(name, Setting())
    part = CONFIG_MAPPING[name].sub_configs.get("text_config")
    text = SETTINGS.get(getattr(part, "model_type", ""))
    if text is None or own.absent:
        return own
    text_config = text.config | own.config.get("text_config", {})
    return dataclasses.replace(text, config=own.config | {"text_config": text_config}, note=own.note or text.note)


def settings_hash(name: str) -> str:
    """Changes with anything that decides how the type is tried."""
    shrinking = json.dumps([zoo.SMALL, zoo.AWKWARD, zoo.MIXED, zoo.PART])
    return _digest(f"{setting(name)}{shrinking}")


def code_hash() -> str:
    """Changes with the code that writes and judges checkpoints."""
    files = [path for name in DECIDING for path in sorted((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name])]
    return _digest("".join(path.read_text(encoding="utf-8") for path in files))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def try_type(name: str, folder: Path) -> dict:
    """Build the type, prune it in every way of its setting, and say what happened."""
    wanted = setting(name)
    if wanted.absent:
        return {"status": "not built", "reason": wanted.absent}
    try:
        source = save_dense(name, wanted, folder / "dense")
    except Exception as error:  # constructors raise anything
        return {"status": "not built", "reason": f"{type(error).__name__}: {_line(error)}"}
    try:
        model = open_model(source)
        layers = len(model.outline)
    except UserError as error:
        return {"status": "refused", "reason": _line(error)}
    sets = [try_set(model, removed, folder / str(number)) for number, removed in enumerate(wanted.removals)]
    refusals = [try_set(model, removed, folder / f"illegal{number}") for number, removed in enumerate(wanted.illegal)]
    return {"status": _status(sets, refusals), "layers": layers, "kinds": "".join(model.solver.kinds()), "sets": sets, "illegal": refusals}


def save_dense(name: str, wanted: Setting, folder: Path) -> Path:
    """The tiny unpruned model; its plain forward has to work."""
    config = zoo.shrink(name, awkward=True, **wanted.config)
    model = zoo.build(name, config)
    with torch.no_grad():
        model(input_ids=zoo.tokens())
    zoo.save(model, folder, with_tokenizer=False)
    if model.config.model_type != name:
        config.save_pretrained(folder)  # published files of a multimodal model hold the config of the whole
    return folder


def _status(sets: list[dict], refusals: list[dict]) -> str:
    outcomes = {item["outcome"] for item in [*sets, *refusals]}
    if outcomes & {"WRONG", "crash"}:
        return "WRONG" if "WRONG" in outcomes else "crash"
    return "exact" if all(item["outcome"] == "exact" for item in sets) else "refused"


def try_set(model, removed: tuple[int, ...], out: Path) -> dict:
    """One removal: exact, refused with the reason, WRONG, or crash."""
    found: dict = {"removed": list(removed)}
    try:
        pruned = prune(model, drop(model, removed), out=out)
    except UserError as refusal:
        return found | {"outcome": "WRONG" if out.exists() else "refused", "reason": _line(refusal)}
    except Exception as error:  # a bug of ours
        traceback.print_exc()
        return found | {"outcome": "crash", "reason": f"{type(error).__name__}: {_line(error)}"}
    independent = compare(model, removed, out)
    difference = max(pruned.verified["logits_difference"], independent.difference)
    right = difference <= LOGITS_TOLERANCE and independent.effect > EFFECT and not independent.keys
    return found | {
        "outcome": "exact" if right else "WRONG",
        "logits": difference,
        "cached": pruned.verified["cached_difference"],
        "effect": round(independent.effect, 3),
        "keys": independent.keys[:3],
        "changes": pruned.config_changes,
    }


def _line(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split())[:400]


# ---------------------------------------------------------------- all of them


def isolated(name: str, seconds: float) -> dict:
    """``try_type`` in a process of its own: a crash or a hang is a result."""
    context = multiprocessing.get_context("fork")  # torch and transformers are imported once
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_child, args=(name, Path(folder), sender))
        process.start()
        sender.close()
        try:
            result = receiver.recv() if receiver.poll(seconds) else {"status": "crash", "reason": f"not done after {seconds:.0f} s"}
        except EOFError:
            process.join()
            result = {"status": "crash", "reason": f"the process died with status {process.exitcode}"}
        process.kill()
        process.join()
    return json.loads(json.dumps(result).replace(folder + "/", "").replace(folder, ""))


def _child(name: str, folder: Path, sender) -> None:
    os.setpgrp()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        sender.send(try_type(name, folder))
    except Exception as error:  # recorded; the next type goes on
        traceback.print_exc()
        sender.send({"status": "crash", "reason": f"{type(error).__name__}: {_line(error)}"})


def load() -> dict:
    """The results so far; those made with other versions do not count."""
    if RESULTS.is_file():
        content = json.loads(RESULTS.read_text(encoding="utf-8"))
        if content["versions"] == versions():
            return content
    return {"kind": "families", "versions": versions(), "types": {}}


def save(content: dict) -> None:
    """One line per type, sorted, so that changes read well."""
    lines = [f"{json.dumps(name)}: {json.dumps(content['types'][name])}" for name in sorted(content["types"])]
    head = {key: value for key, value in content.items() if key != "types"}
    body = json.dumps(head, indent=1)[:-2] + ',\n "types": {\n  ' + ",\n  ".join(lines) + "\n }\n}\n"
    write_atomic(RESULTS, body)


def todo(content: dict, only: list[str], again: list[str], keep: bool) -> list[str]:
    """Types without a result of these versions, settings and, unless ``keep``, code."""

    def fresh(name: str) -> bool:
        found = content["types"].get(name, {})
        return found.get("settings") == settings_hash(name) and (keep or found.get("code") == code_hash())

    unknown = {*only, *again} - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if unknown:
        sys.exit(f"no causal-LM types of transformers {transformers.__version__}: {', '.join(sorted(unknown))}")
    return [name for name in sorted(only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if name in again or not fresh(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these types")
    parser.add_argument("--again", nargs="+", default=[], metavar="NAME", help="these types even if they have a result")
    parser.add_argument("--keep", action="store_true", help="keep results that another state of the code gave")
    options = parser.parse_args()
    content, code = load(), code_hash()
    names = todo(content, options.only or options.again, options.again, options.keep)
    for number, name in enumerate(names, 1):
        start = time.monotonic()
        result = isolated(name, SECONDS)
        seconds = round(time.monotonic() - start, 1)
        made = {"seconds": seconds, "settings": settings_hash(name), "code": code}
        content["types"][name] = {"status": result.pop("status"), "note": setting(name).note} | result | made
        save(content)
        print(f"{number}/{len(names)} {name}: {content['types'][name]['status']} ({seconds} s) {result.get('reason', '')}", flush=True)
    print(dict(Counter(result["status"] for result in content["types"].values())))


if __name__ == "__main__":
    main()
