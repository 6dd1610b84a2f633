"""GGUF import: a .gguf file turned once into a plain safetensors model, with what transformers' importer does not know
refused or added.

transformers reads config, tokenizer and weights. It drops settings that it has no name for without a word, takes a
file without some weights for whole, and reads every word of the vocabulary several times; so the header is read here
first.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, modeling_gguf_pytorch_utils

from ..errors import UserError
from ..runtime.progress import say, track
from ..storage.files import check_space, new_folder
from ..storage.gguf import PATTERNS, GgufHeader, GgufTensor, LongArray, check_sizes
from ..storage.gguf_writer import UINT32, GgufValue, Renamed, write_gguf
from ..storage.paths import cache_folder
from .loading import check_whole, from_config, one_line, quiet, unfilled

FACTORS = "rope_freqs.weight"
KNOWN_FACTORS = (
    8192,
    4096,
    16384,
    32768,
    2048,
    1024,
    512,
    256,
    128,
    64,
    32,
)  # lengths that the factors may start from, likeliest first
GGUF_CLOSE = 1e-4
PLAIN_SCALING = ("none", "default")
HARMLESS = {"finetuned", "type", "factor", "original_context_length"}  # of rope.scaling, where its type is known
FULL = "full_attention"
HEAD, EMBEDDING = "output.weight", "token_embd.weight"


def header_config(header: GgufHeader) -> PreTrainedConfig:
    """The config of the model in a .gguf file, from its header alone; its weights and its vocabulary are not read.

    Raises:
        UserError: transformers does not know the architecture, or settings of its rotary embedding, or the metadata
            speak of a larger model than the tensors are of.
    """
    check_sizes(header)
    rope = _rope(header)
    config = _config(header)
    for key, value in rope.items():
        config.rope_parameters[key] = value
    _check_vocabulary(header, config)
    _set_patterns(header, config)
    return config


def plain_from_gguf(header: GgufHeader, origin: str) -> Path:
    """A plain fp32 model made once from a .gguf file, in the user's cache under the file's hash.

    The weights are dequantised to fp32, in which they are exact. A model loaded from GGUF keeps a quantisation config
    that makes it unsavable, so the model is rebuilt as a plain one.

    Raises:
        UserError: transformers cannot read the file, or not all of it.
    """
    file = header.file
    target = cache_folder() / f"{file.stem}-{origin[:16]}-{origin.rpartition(' ')[2]}"
    if (target / "config.json").is_file():
        return target
    config = header_config(header)
    size = 4 * header.parameters
    say(
        f"unpacking {file.name} once: {header.bytes / 1e6:.0f} MB of {header.storage} become {size / 1e6:.0f} "
        f"MB of float32 in {target}"
    )
    check_space(target, size)
    with quiet(), new_folder(target) as folder:
        plain, tokenizer = _load(header, config)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _tell_twice(header)
    return target


def _config(header: GgufHeader) -> PreTrainedConfig:
    """transformers' reading of the metadata, with the vocabulary left out."""
    with tempfile.TemporaryDirectory(prefix="shallower-gguf-") as place:
        short = _without_words(header, Path(place, "header.gguf"), data=False)
        try:
            with quiet():
                return AutoConfig.from_pretrained(place, gguf_file=str(short))
        except Exception as error:  # gguf and transformers raise many kinds
            raise UserError(f"{header.file} cannot be read as a GGUF model ({one_line(error)})") from error


def _without_words(header: GgufHeader, target: Path, *, data: bool) -> Path:
    """The same file without its vocabulary, whose size is told instead; without ``data`` its weights are a hole.

    Reading every word takes libraries most of a minute; for what else they tell it is not needed.
    """
    tensors = [Renamed(tensor.name, tensor, silent=not data) for tensor in header.tensors]
    counts = {key: GgufValue(UINT32, value) for key, value in _counts(header).items()}
    return write_gguf(header, target, tensors, counts, _words(header))


def _words(header: GgufHeader) -> list[str]:
    """The keys of long arrays, which hold the vocabulary."""
    return [key for key, value in header.metadata.items() if isinstance(value, LongArray)]


def _counts(header: GgufHeader) -> dict[str, int]:
    """The size of the vocabulary, which transformers otherwise counts."""
    rows = next(
        (tensor.shape[1] for tensor in header.tensors if tensor.name == EMBEDDING and len(tensor.shape) == 2), None
    )
    key = f"{header.architecture}.vocab_size"
    return {key: rows} if rows and rows < 2**32 and key not in header.metadata else {}


def _check_vocabulary(header: GgufHeader, config: PreTrainedConfig) -> None:
    rows = _counts(header).get(f"{header.architecture}.vocab_size") or header.own("vocab_size")
    if isinstance(rows, int) and rows != config.get_text_config().vocab_size:
        config.get_text_config().vocab_size = rows


def _set_patterns(header: GgufHeader, config: PreTrainedConfig) -> None:
    """Which layers have a sliding window, or are recurrent, where the file writes it out: the importer counts.

    Raises:
        UserError: the config has no place for it, or the file names another number of layers.
    """
    text = config.get_text_config()
    for key in PATTERNS:
        flags = header.pattern(key)
        if flags is None:
            continue
        kinds = getattr(text, "layer_types", None)
        special = next((kind for kind in kinds or () if kind != FULL), None)
        if not isinstance(kinds, list) or len(flags) != len(kinds) or (special is None and any(flags)):
            raise UserError(
                f"{header.file} writes out {key}, for which transformers' {config.model_type} has no place: give the "
                "original model instead of the .gguf file"
            )
        text.layer_types = [special if flag else FULL for flag in flags]


def _rope(header: GgufHeader) -> dict[str, Any]:
    """What to add to the config's rotary settings: scaling that the importer drops.

    Raises:
        UserError: scaling that has no exact counterpart here.
    """
    arch = header.architecture
    prefix = f"{arch}.rope.scaling."
    settings = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    kind = settings.get("type", "none")
    factor = settings.get("factor", header.own("rope.scale_linear", 1.0))
    unknown = sorted(set(settings) - HARMLESS)
    tables = sorted(name for name in header.names if name.startswith("rope_") and name != FACTORS)
    if arch == "gpt-oss" and not tables:
        return {}  # the importer reads them
    number = isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0
    if tables or (unknown and kind not in PLAIN_SCALING) or kind not in (*PLAIN_SCALING, "linear") or not number:
        what = (
            tables[0]
            if tables
            else ", ".join(f"rope.scaling.{key} = {value}" for key, value in sorted(settings.items()))
        )
        raise UserError(
            f"{header.file}: its rotary scaling ({what}) is dropped by transformers' importer, and shallower "
            "cannot say it either: "
            "give the original model instead of the .gguf file"
        )
    if FACTORS in header.names:
        if factor != 1.0 and kind == "linear":
            raise UserError(
                f"{header.file} scales its rotary angles by {FACTORS} and by rope.scaling: give the original "
                "model instead"
            )
        return _llama3(header)
    if kind == "linear" and factor != 1.0:
        return {"rope_type": "linear", "factor": float(factor)}
    return {}


def _llama3(header: GgufHeader) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling that give the factors which the file holds, one by frequency."""
    tensor = next(one for one in header.tensors if one.name == FACTORS)
    table = read_gguf_tensor(header, tensor).flatten().double()
    base = float(header.own("rope.freq_base", 10000.0))
    factor = float(table.max())
    if bool((table == 1).all()):
        return {}
    plain = base ** -(torch.arange(len(table), dtype=torch.float64) / len(table))
    for length in KNOWN_FACTORS:
        settings = {
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": length,
        }
        if bool(((llama3_factors(plain, **settings) - table).abs() <= GGUF_CLOSE * table.abs()).all()):
            return {"rope_type": "llama3"} | settings
    raise UserError(
        f"{header.file}: the factors in {FACTORS} fit no scaling that is known here: give the original model "
        "instead of the .gguf file"
    )


def llama3_factors(
    frequencies: Tensor,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """What the rotary frequencies are divided by, (frequency,): 1 for short waves, ``factor`` for long ones, between
    them in between.

    Source: the scaling of Llama 3.1 as transformers and llama.cpp compute it.
    """
    wave = 2 * math.pi / frequencies
    low, high = original_max_position_embeddings / low_freq_factor, original_max_position_embeddings / high_freq_factor
    smooth = (original_max_position_embeddings / wave - low_freq_factor) / (high_freq_factor - low_freq_factor)
    between = 1 / ((1 - smooth) / factor + smooth)
    ones = torch.ones_like(wave)
    return torch.where(wave < high, ones, torch.where(wave > low, ones * factor, between))


def read_gguf_tensor(header: GgufHeader, tensor: GgufTensor) -> Tensor:
    """One tensor dequantised to fp32, its slowest axis first."""
    with header.file.open("rb") as stream:
        stream.seek(tensor.start)
        raw = np.frombuffer(stream.read(tensor.end - tensor.start), dtype=np.uint8)
    kind = GGMLQuantizationType[tensor.kind]
    shape = tuple(reversed(tensor.shape))
    rows = raw.reshape(*shape[:-1], -1) if len(shape) > 1 else raw.reshape(1, -1)
    return torch.from_numpy(np.ascontiguousarray(dequantize(rows, kind)).reshape(shape).copy()).float()


def _load(header: GgufHeader, config: PreTrainedConfig) -> tuple[torch.nn.Module, Any]:
    """(the plain model, its tokenizer).

    Files are named by their whole paths: transformers takes a bare name for one in the current folder where that is.
    """
    file = header.file
    try:
        with tempfile.TemporaryDirectory(prefix="shallower-gguf-", dir=_roomy(header)) as place, _metered():
            short = _without_words(header, Path(place, file.name), data=True)
            model, info = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=str(short), dtype=torch.float32, config=config, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=str(file.absolute()))
    except Exception as error:  # gguf and transformers raise many kinds for an unreadable file
        raise UserError(f"{file} cannot be read as a GGUF model ({one_line(error)})") from error
    check_whole(str(file), info)
    _check_all_read(header, model)
    content = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        content.pop(name, None)
    with unfilled(), init_empty_weights(include_buffers=False):
        plain = from_config(type(model.config).from_dict(content))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain, tokenizer


def _roomy(header: GgufHeader) -> Path:
    """The folder for a copy of the file: the cache's, which has to have room for much more."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_all_read(header: GgufHeader, model: torch.nn.Module) -> None:
    """Raise a UserError unless the model has as many numbers as the file: none was dropped on the way."""
    tensors = {tensor.name: tensor for tensor in header.tensors if tensor.name != FACTORS}
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    ends = [getattr(end, "weight", None) for end in (model.get_input_embeddings(), model.get_output_embeddings())]
    if head and embedding and ends[0] is ends[1]:
        if not torch.equal(read_gguf_tensor(header, head), read_gguf_tensor(header, embedding)):
            raise UserError(
                f"{header.file} holds a head of its own, which transformers' importer drops: give the original "
                "model instead"
            )
        del tensors[HEAD]
    in_file = sum(tensor.count for tensor in tensors.values())
    state = model.state_dict()
    in_model = sum(parameter.numel() for parameter in model.parameters())
    in_model += sum(buffer.numel() for name, buffer in model.named_buffers() if name in state)
    if in_model != in_file:
        raise UserError(
            f"{header.file} holds {in_file} numbers in its weights, of which transformers' importer makes a model "
            f"with {in_model}: "
            "give the original model instead of the .gguf file"
        )


def _tell_twice(header: GgufHeader) -> None:
    """Say so where a file holds the embedding a second time as its head, as files of small models often do."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    one, other = tensors.get(HEAD), tensors.get(EMBEDDING)
    if one is None or other is None or one.shape != other.shape:
        return
    rows = slice(0, 256)
    head, embedding = (read_gguf_tensor(header, tensor)[rows] for tensor in (one, other))
    apart = float((head - embedding).norm() / embedding.norm())
    if apart < 0.2:  # two roundings of one matrix; unrelated ones are farther apart than they are long
        say(
            f"{header.file.name} holds the embedding twice, as {other.kind} for the input and as {one.kind} "
            "for the head "
            f"({apart:.1%} apart): the model was tied, and counts {one.count / 1e6:.1f}M parameters more than "
            "the original"
        )


@contextmanager
def _metered() -> Iterator[None]:
    """Our own progress instead of a bar that writes into logs."""
    module = modeling_gguf_pytorch_utils
    name = "tqdm"
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, lambda items, **_: track(items, "unpacking tensors", len(items)))
    try:
        yield
    finally:
        setattr(module, name, before)
