"""Checkpoint loading: a model on disk, its weights loaded whole or its modules built without them."""

import contextlib
import copy
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, PreTrainedConfig, initialization
from transformers.utils import logging as hf_logging

from ..errors import UserError, argument
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..storage.gguf import fingerprint_of
from ..storage.hashes import file_hashes
from ..storage.index import TensorEntry
from .agreement import bounded
from .custom import is_custom, loader_of
from .names import Names, read_names
from .quantised import FIELDS, check_room, loading_of, quantisation_method

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
VOLATILE = ("transformers_version", "_name_or_path")  # fields of a config that do not change the model
ALIGNMENT = 64


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and warnings out of our output."""
    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Silence a logger whose errors are caught here."""
    logger = logging.getLogger(name)
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """``fp32``, ``bf16``, ``fp16`` (or torch's own names) as a torch dtype; None stays None.

    Raises:
        UserError: another name.
    """
    aliases = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    if name is None or name == "auto":
        return None
    if isinstance(name, torch.dtype):
        return name
    if aliases.get(name, name) not in TORCH_DTYPES:
        raise UserError(f"unknown dtype {name!r}; allowed are {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[aliases.get(name, name)]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its folder, its config and where each tensor lies. Nothing large is read yet.

    Attributes:
        raw: the config as it is in the file.
        origin: hash of the .gguf file that the folder was or would be made from; empty for others.
        hashes: file -> SHA-256, where that is known without reading the file.
        packed: bytes of the .gguf file's weights, and how they are stored; (0, "") for others.
        original: numbers of the layers in the first model, as the .gguf file has noted them; None for others.
        whole: the files are here; else only their headers were read, and nothing can be loaded.
    """

    source: str
    folder: Path
    config: PreTrainedConfig
    tensors: dict[str, TensorEntry] = field(repr=False)
    trust_remote_code: bool = False
    raw: dict[str, Any] = field(default_factory=dict, repr=False)
    origin: str = ""
    hashes: dict[Path, str] = field(default_factory=dict, repr=False)
    packed: tuple[int, str] = (0, "")
    original: list[int] | None = None
    whole: bool = True

    @property
    def hub_id(self) -> str | None:
        """The id on the Hub that was given; None for a folder or a file."""
        return hub_of(self.source)

    @property
    def positions(self) -> int | None:
        """Positions that the model was made for; None where its config does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides what is loaded.

        The config, every byte of every weight file, and code that comes with the model.
        """
        if self.origin:
            return fingerprint_of(self.origin)
        digest = hashlib.sha256()
        raw = {key: value for key, value in self.raw.items() if key not in VOLATILE}
        digest.update(json.dumps(raw, sort_keys=True).encode())
        files = {entry.file for entry in self.tensors.values()}
        code = sorted(self.folder.glob("*.py")) if self.trust_remote_code and not is_custom(self.config) else []
        hashes = self.hashes | file_hashes([*sorted(files - self.hashes.keys()), *code])
        for name, entry in sorted(self.tensors.items()):
            digest.update(f"{name}|{entry.dtype}|{entry.shape}|{hashes[entry.file]}".encode())
        for file in code:
            digest.update(f"{file.name}|{hashes[file]}".encode())
        return digest.hexdigest()[:16]

    @cached_property
    def shapes(self) -> nn.Module:
        """The model without weights, for looking at: parameters on the meta device."""
        with bounded(len(self.tensors)) if self.tensors else contextlib.nullcontext():
            return self.build()

    @cached_property
    def names(self) -> Names:
        """Where each tensor of the files goes in the model."""
        return read_names(self.shapes, self.tensors)

    @property
    def quantised(self) -> dict[str, Any] | None:
        """The quantisation config, or None where the weights are plain."""
        for config in (self.config, self.config.get_text_config()):
            for name in FIELDS:
                found = getattr(config, name, None)
                found = found.to_dict() if hasattr(found, "to_dict") else found
                if found and isinstance(found, dict):
                    return found
        return None

    def check_loadable(self) -> dict[str, Any]:
        """What transformers is told besides the folder, where weights are quantised.

        Raises:
            UserError: they are, and cannot be loaded on this machine.
        """
        with quiet():
            return loading_of(self.source, self.quantised)

    @property
    def unpacks(self) -> bool:
        """Whether its weights are packed, and become plain ones when they are loaded."""
        return bool(self.quantised is not None and self.check_loadable())

    @property
    def bytes(self) -> int:
        """Bytes of all stored weights."""
        return sum(entry.bytes for entry in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """One stored tensor by its name in the files, in the dtype that it has there."""
        with safe_open(self.tensors[name].file, "pt") as content:
            return content.get_tensor(name)

    def loaded_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of all weights in memory: packed ones take what they take on the disk, unless loading unpacks them."""
        if self.unpacks:
            width = (dtype or self.config.dtype or torch.bfloat16).itemsize
            return width * sum(parameter.numel() for parameter in self.shapes.parameters())
        width = dtype.itemsize if dtype and self.quantised is None else 0
        return sum(max(entry.bytes, entry.count * width) for entry in self.tensors.values())

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu") -> nn.Module:
        """The model in eval mode, all weights in memory; ``dtype`` None keeps the stored one.

        Raises:
            UserError: transformers cannot load it, or would draw missing weights at random.
        """
        if self.unpacks:
            method = quantisation_method(self.quantised)
            say(f"{self.source}: its {method} weights are unpacked as they are read, and activations are not rounded")
        model, info = self.load_reporting(dtype=dtype, device=device)
        check_whole(self.source, info)
        return model

    def load_reporting(self, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[nn.Module, dict]:
        """The model and transformers' own report: missing, unexpected and mismatched keys."""
        if not self.whole:
            raise UserError(
                f"{self.source}: only the headers of its files were read, so it cannot be loaded: open it anew"
            )
        how = self.check_loadable()
        if self.quantised is not None:
            check_room(self.source, self.quantised, self.loaded_bytes(dtype), total_memory(device))
        loader, config, ours = loader_of(self.config)
        try:
            with quiet(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="You passed `quantization_config`")
                model, info = loader.from_pretrained(
                    self.folder,
                    dtype=dtype or "auto",
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                    **how,
                    **({"config": config} if ours else {}),
                    # tensor by tensor to the GPU: the machine's memory need not hold the model; and what is packed for
                    # another kind of device is unpacked for this one
                    **({"device_map": {"": device}} if device.startswith("cuda") or how else {}),
                )
                if how and dtype is not None:
                    cast_weights(model, dtype)
                model = align_weights(model.requires_grad_(False).to(device)).eval()
        except Exception as error:  # config, code and weights can each be wrong in many ways
            raise UserError(f"{self.source}: transformers cannot load it ({one_line(error)})") from error
        return model, info

    def tokenizer(self):
        """The model's tokenizer.

        Raises:
            UserError: the folder holds none.
        """
        try:
            with quiet():
                known = {"config": copy.deepcopy(self.config)} if is_custom(self.config) else {}
                return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code, **known)
        except Exception as error:  # transformers raises many kinds for an absent or broken tokenizer
            raise UserError(
                f"{self.source} has no tokenizer that loads ({one_line(error)}): add its files, or pass "
                f"{argument('tokens', 'FILE.npy')}"
            ) from error

    def build(self, config: PreTrainedConfig | None = None) -> nn.Module:
        """The model's modules with parameters on the meta device; buffers such as rotary tables are real."""
        try:
            with unfilled(), init_empty_weights(include_buffers=False):
                model = from_config(config or self.config, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # as above
            raise UserError(
                f"{self.source}: transformers cannot build it from its config ({one_line(error)})"
            ) from error
        model.tie_weights()  # moving to the meta device separated tied parameters
        return model

    def skeleton(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The model to compute with, its parameters on the meta device; ``dtype`` None is the stored one."""
        stored = self.config.dtype
        if stored is None:
            kinds = [FLOATS[entry.dtype] for entry in self.tensors.values() if entry.dtype in FLOATS]
            stored = kinds[0] if kinds else torch.float32
        with unfilled(), init_empty_weights(include_buffers=False):
            model = from_config(self.config, trust_remote_code=self.trust_remote_code, dtype=dtype or stored)
        model.tie_weights()
        return model.requires_grad_(False)


def hub_of(source: str) -> str | None:
    """A source if it is an id on the Hub, None if it is a folder or a file."""
    return (
        source
        if HUB_ID.fullmatch(source) and not source.endswith(".gguf") and not os.path.exists(Path(source).expanduser())
        else None
    )


def unfilled() -> contextlib.AbstractContextManager[None]:
    """Building without drawing weights that nobody looks at, which takes most of the time on the meta device.

    Buffers such as rotary tables are made by constructors and are the same (tested for the zoo).
    """
    return getattr(initialization, "no_init_weights", contextlib.nullcontext)()


def from_config(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> nn.Module:
    """A model built from a copy of its config, in eval mode; what its tensors are follows from the context."""
    with quiet():
        options = {} if dtype is None else {"dtype": dtype}
        loader, config, ours = loader_of(config)
        if ours:
            return loader._from_config(config, **options).eval()
        return loader.from_config(config, trust_remote_code=trust_remote_code, **options).eval()


def check_whole(who: str, info: dict) -> None:
    """Raise a UserError if transformers' report says that weights were missing or of another shape."""
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            example = f"{kind.replace('_', ' ')}: {min(map(str, info[kind]))}"
            raise UserError(
                f"{who} lacks weights when loaded ({example}); they would be drawn at random: download or save it again"
            )


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give unpacked weights the dtype that was asked for, which some methods unpack to one of their own."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.to(dtype)


def align_weights(model: nn.Module) -> nn.Module:
    """Move memory-mapped CPU weights to aligned memory.

    Misaligned ones make other kernels run, with other last bits.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        plain = type(tensor.data) is torch.Tensor  # what holds several arrays has no address
        if plain and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


class _Writes(TorchDispatchMode):
    """Names of those of some tensors that are written to meanwhile, through views too."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.names = {tensor.untyped_storage()._cdata: name for name, tensor in tensors.items()}
        self.written: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func._schema.is_mutable and args and isinstance(args[0], torch.Tensor):
            name = self.names.get(args[0].untyped_storage()._cdata)
            self.written += [name] if name else []
        return func(*args, **kwargs or {})


@torch.no_grad()
def changed_by_loading(model: nn.Module) -> list[str]:
    """Names of weights that transformers changes after it has read them, as a few types' rules for initialising do.

    Args:
        model: without weights, on the meta device.
    """
    kept = model.state_dict(keep_vars=True)
    for tensor in kept.values():
        tensor._is_hf_initialized = True
    with _Writes(kept) as writes:
        model.initialize_weights()
    return sorted(set(writes.written))


@contextlib.contextmanager
def running_form(source: str, config: PreTrainedConfig) -> Iterator[None]:
    """Say of a model of our own form that does not run that its config.json tells it wrongly.

    Raises:
        UserError: what ran inside failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a missing module that returns another thing than it says fails anywhere
        if not is_custom(config):
            raise
        why = f"without what it says is missing the model does not run: {one_line(error)}"
        raise UserError(
            f"{source}: its config.json is none that shallower wrote ({why}): prune the model again"
        ) from error


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first informative line of an exception's text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
