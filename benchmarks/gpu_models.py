"""What the GPU benchmark works on: random models made on the card, a byte-level tokenizer, texts; and its calls.

The latter stands at the end, in one place, so that a change of the package's calls needs a change here only.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from harness import big
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from shallower import (
    Amount,
    Calibration,
    Compute,
    Grid,
    RepairOptions,
    SelectionOptions,
    Training,
    drop,
    heal,
    open_model,
    plan,
    prune,
    score,
)
from shallower.anatomy.loading import quiet
from shallower.anatomy.model import Model
from shallower.artifacts import Removal, plain
from shallower.evaluation.analytic import analytic, bandwidth
from shallower.evaluation.speed import Lane, take_turns
from shallower.runtime.progress import meter
from shallower.stages.repair import fit_repair
from shallower.storage.journal import journaled

TEXTS = ("wikitext2.valid.txt", "emma_158.txt")  # of the folder that SHALLOWER_DATA names, where it has them
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SHARD, WRITERS = 2 * 10**9, 4  # bytes of a file, files that are written at once
SAMPLE = 200_000  # characters that the tokenizer learns from
KINDS = {
    "llama": {"model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": False},
    "qwen3": {
        "model_type": "qwen3",
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },  # grouped heads, norms of queries and keys
}


# ---------------------------------------------------------------- texts and tokens


def texts(work: Path) -> list[Path]:
    """Files to train and calibrate on: those of $SHALLOWER_DATA, else the package's own prose."""
    given = Path(os.environ.get("SHALLOWER_DATA", "/nowhere"))
    folder = given / "text" if (given / "text").is_dir() else given
    found = [folder / name for name in TEXTS if (folder / name).is_file()]
    if found:
        return found
    place = work / "shipped.txt"
    if not place.is_file():
        prose = sorted((big.ROOT / "shallower").rglob("*.txt"))
        place.write_text("\n\n".join(path.read_text(encoding="utf-8") for path in prose), encoding="utf-8")
    return [place]


def excerpt(work: Path, characters: int) -> Path:
    """A file with the beginning of the first text."""
    path = work / f"excerpt-{characters}.txt"
    if not path.is_file():
        path.write_text(texts(work)[0].read_text(encoding="utf-8")[:characters], encoding="utf-8")
    return path


def tokenizer(vocabulary: int, text: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most so many entries, learned from the text; it adds no special tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    how = {"vocab_size": vocabulary, "special_tokens": list(SPECIAL), "initial_alphabet": sorted(alphabet)}
    backend.train_from_iterator(
        text.read_text(encoding="utf-8").splitlines(), trainers.BpeTrainer(show_progress=False, **how)
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def tokens(work: Path, samples: int, length: int, vocabulary: int) -> Path:
    """A file of random token ids, always the same."""
    path = work / f"tokens-{samples}-{length}-{vocabulary}.npy"
    if not path.is_file():
        np.save(path, np.random.default_rng(0).integers(len(SPECIAL), vocabulary, (samples, length)))
    return path


# ---------------------------------------------------------------- models


def small(work: Path, kind: str, settings: dict) -> Path:
    """The folder of a small fp32 model in which every layer matters: matrices keep the size of what enters."""
    folder = work / f"small-{kind}"
    if (folder / "config.json").is_file():
        return folder
    wide, heads = settings["hidden"], 4
    shape = {
        "hidden_size": wide,
        "intermediate_size": 2 * wide,
        "num_attention_heads": heads,
        "head_dim": wide // heads,
    }
    shape |= {
        "num_hidden_layers": settings["layers"],
        "vocab_size": settings["vocabulary"],
        "max_position_embeddings": 512,
    }
    own = dict(KINDS[kind])
    config = CONFIG_MAPPING[own.pop("model_type")](**shape, **own, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(len(kind))
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise / math.sqrt(weight.shape[-1]) if weight.dim() >= 2 else 1 + 0.1 * noise)
    with quiet():
        model.save_pretrained(folder)
    tokenizer(settings["vocabulary"], excerpt(work, SAMPLE)).save_pretrained(folder)
    return folder


def parameters(shape: dict) -> int:
    """All of them."""
    return sum(math.prod(size) for size in big.shapes(shape).values())


def products(shape: dict) -> tuple[int, int]:
    """Parameters that a token is multiplied with: (in one layer, in the head)."""
    sizes = big.shapes(shape)
    layer = sum(
        math.prod(size) for name, size in sizes.items() if name.startswith("model.layers.0.") and len(size) == 2
    )
    return layer, math.prod(sizes["lm_head.weight"])


def large(work: Path, shape: dict, device: str, *, talks: bool = False) -> tuple[Path, dict]:
    """The folder of a random bf16 model of Llama's build, and what making it took; ``talks`` adds a tokenizer."""
    folder = work / "-".join(["model", *map(str, shape.values())])
    made = {"bytes": big.bytes_of(shape), "parameters": parameters(shape)}
    if not (folder / "config.json").is_file():
        big.room(work, int(1.02 * made["bytes"]), "the model")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.perf_counter()
        _write(folder, shape, device)
        made |= {"seconds": time.perf_counter() - started}
        (folder / "config.json").write_text(
            json.dumps(big.config(shape), indent=1)
        )  # last: says that the folder is whole
    if talks and not (folder / "tokenizer.json").is_file():
        tokenizer(min(1024, shape["vocabulary"]), excerpt(work, SAMPLE)).save_pretrained(folder)
    return folder, made


def _write(folder: Path, shape: dict, device: str) -> None:
    """Shards of random tensors, some written at once: each thread draws on the card, copies and writes."""
    shards, filled = [[]], 0
    for number, (name, size) in enumerate(big.shapes(shape).items()):
        count = 2 * math.prod(size)
        if filled + count > SHARD and shards[-1]:
            shards, filled = [*shards, []], 0
        shards[-1].append((name, size, number))
        filled += count
    files = [folder / f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda file, shard: _shard(file, shard, device), files, shards))
    index = {name: file.name for file, shard in zip(files, shards, strict=True) for name, _, _ in shard}
    about = {"metadata": {"total_size": big.bytes_of(shape)}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(about))


def _shard(file: Path, shard: list[tuple[str, tuple[int, ...], int]], device: str) -> None:
    with file.open("wb") as out:
        out.write(big.bf16_header({name: size for name, size, _ in shard}))
        for _, size, seed in shard:
            drawn = torch.ones(size, dtype=torch.bfloat16, device=device)
            if len(size) > 1:
                drawn.normal_(0, 0.02, generator=torch.Generator(device).manual_seed(seed))
            out.write(drawn.cpu().view(torch.uint8).numpy().data)


# ---------------------------------------------------------------- what is asked of the package


@dataclass(frozen=True)
class Asked:
    """A model, opened as said, and the verbs that are measured."""

    source: Path
    device: str
    dtype: str = "bf16"
    layered: bool = False

    @property
    def compute(self) -> Compute:
        return Compute(dtype=self.dtype, device=self.device, layered=self.layered)

    def opened(self, *, loaded: bool = True) -> Model:
        """The model, its weights in memory unless it is said otherwise."""
        model = open_model(self.source, self.compute)
        if loaded:
            _ = model.stack
        return model


def scored(model: Model, criterion: str, tokens: Path, units: str = "layer") -> dict:
    """Scores, seconds without loading, and peak memory."""
    found = score(model, criterion=criterion, calibration=Calibration(tokens=str(tokens)), units=units)
    return {"scores": found.scores, "seconds": found.seconds, "peak_bytes": found.peak_memory_bytes}


def greedy(model: Model, remove: int, tokens: Path) -> list[int]:
    """The layers that greedy removes, in order; none is protected."""
    choosing = SelectionOptions("greedy", keep_first=0, keep_last=0)
    return plan(model, amount=Amount(remove), choosing=choosing, calibration=Calibration(tokens=str(tokens))).order


def repaired(model: Model, removed: Iterable[int], method: str, tokens: Path, beside: Path | None = None) -> dict:
    """Losses on held-out tokens, how many weights changed, seconds and peak memory of a repair that is not written.

    Args:
        beside: keep a journal beside this output, as ``prune`` does: changes of weights then lie on the disk.
    """
    with journaled(beside):
        report = fit_repair(
            model, Removal.of_layers(removed), RepairOptions(method, {}, Calibration(tokens=str(tokens)))
        )[1]
    found = {name: plain(getattr(report, name)) for name in ("loss", "seconds", "fitted_tokens", "held_out_tokens")}
    return found | {"peak_bytes": report.peak_memory_bytes, "changed": len(report.changed)}


def pruned(model: Model, removed: Iterable[int], out: Path, *, verify: bool = True) -> dict:
    """What the proof says of the model that is written without these layers, and the seconds of it all."""
    started = time.perf_counter()
    made = prune(model, drop(model, list(removed)), out=out, verify=verify, overwrite=True)
    return {"seconds": time.perf_counter() - started, "verified": plain(made.verified)}


def decoded(models: dict[str, Model], grid: dict) -> dict:
    """Seconds of a decoding step, all models in turns, and how much faster the others are than the last: in fact, and
    by the bytes that a step reads.
    """
    for model in models.values():
        _ = model.stack
    dense, how = list(models)[-1], Grid.of(**grid)
    figures = {name: analytic(model) for name, model in models.items()}
    speed, rows, speedups = bandwidth(models[dense].device), [], []
    for setting in how.settings:
        lanes = {name: Lane(name, models, how, setting, figures[name]) for name in models}
        with meter("speed", (how.warmup + how.repeats) * len(models)) as done:
            take_turns(lanes, how, math.inf, done)
        took = {name: None if lane.full else median(lane.seconds("decode")) for name, lane in lanes.items()}
        for name, lane in lanes.items():
            place = {"of": name, "batch": setting[0]}
            bound = took[name] and lane.step_bytes / took[name] / speed
            rows.append(place | {"decode": took[name], "bound": bound})
            if name != dense and took[name] and took[dense]:
                ideal = lanes[dense].step_bytes / lane.step_bytes
                speedups.append(place | {"decode": took[dense] / took[name], "ideal": ideal})
    read = {name: one.read_bytes_per_token for name, one in figures.items()}
    return {"rows": rows, "speedups": speedups, "bandwidth": speed, "read_bytes_per_token": read}


def healed(asked: Asked, data: list[Path], out: Path, how: dict, *, method: str, skipped: int = 0) -> dict:
    """Losses of all steps, and the median of tokens per second behind the first ``skipped``; what is written goes.

    Args:
        how: tokens per sequence (``length``), of a batch (``batch_tokens``) and steps.
    """
    training = Training(length=how["length"], batch_tokens=how["batch_tokens"], checkpoint_minutes=60)
    settings = {"dropout": "0"} if method == "lora" else {}  # what is dropped differs from device to device
    started = time.perf_counter()
    found = heal(
        asked.source,
        data=data,
        train_tokens=how["steps"] * how["batch_tokens"],
        out=out,
        method=method,
        settings=settings,
        training=training,
        compute=asked.compute,
        overwrite=True,
    )
    rows = [row for row in found.rows if row.loss is not None]
    shutil.rmtree(out, ignore_errors=True)
    return {
        "losses": [row.loss for row in rows],
        "norms": [row.grad_norm for row in rows],
        "tokens_per_second": median(row.tokens_per_second for row in rows[skipped:]),
        "micro_batch": found.micro_batch,
        "peak_bytes": found.peak_memory_bytes,
        "seconds": time.perf_counter() - started,
    }


Make = Callable[[], dict]
