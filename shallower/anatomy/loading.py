"""Open a model: a folder, a Hub id or a .gguf file. Safetensors only; remote code only when asked."""

import contextlib
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from ..errors import UserError
from ..files import new_folder
from ..tensors import Entry, read_index

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md"]
SAMPLE_BYTES = 4096
ALIGNMENT = 64


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and warnings out of our output."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


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
    if aliases.get(name, name) not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[aliases.get(name, name)]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: its folder, its config and where each tensor lies. Nothing large is read yet."""

    source: str
    folder: Path
    config: PreTrainedConfig
    tensors: dict[str, Entry] = field(repr=False)
    trust_remote_code: bool = False

    @property
    def hub_id(self) -> str | None:
        """The id on the Hub that was given; None for a folder or a file."""
        return hub_of(self.source)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the architecture and of a sample of every tensor's bytes: another model, another fingerprint."""
        digest = hashlib.sha256(_stable(self.folder).encode())
        for name, entry in sorted(self.tensors.items()):
            digest.update(f"{name}|{entry.dtype}|{entry.shape}".encode())
            digest.update(_sample(entry))
        return digest.hexdigest()[:16]

    def load(self, *, dtype: torch.dtype | None = None, device: str = "cpu") -> nn.Module:
        """The model in eval mode, all weights in memory; ``dtype`` None keeps the stored one.

        Raises:
            UserError: transformers cannot load it, or would draw missing weights at random.
        """
        model, info = self.load_reporting(dtype=dtype, device=device)
        check_whole(self.source, info)
        return model

    def load_reporting(self, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[nn.Module, dict]:
        """The model and transformers' own report: missing, unexpected and mismatched keys."""
        try:
            with quiet():
                model, info = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    dtype=dtype or "auto",
                    use_safetensors=True,
                    trust_remote_code=self.trust_remote_code,
                    output_loading_info=True,
                )
        except Exception as error:  # config, code and weights can each be wrong in many ways
            raise UserError(f"{self.source}: transformers cannot load it ({one_line(error)})") from error
        model.requires_grad_(False)
        return aligned(model.to(device)).eval(), info

    def tokenizer(self):
        """The model's tokenizer.

        Raises:
            UserError: the folder holds none.
        """
        try:
            with quiet():
                return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # transformers raises many kinds for an absent or broken tokenizer
            raise UserError(
                f"{self.source} has no tokenizer that loads ({one_line(error)}): add its files, or pass --tokens FILE.npy"
            ) from error

    def build(self, config: PreTrainedConfig | None = None) -> nn.Module:
        """The model's modules with parameters on the meta device; buffers such as rotary tables are real."""
        try:
            with init_empty_weights(include_buffers=False):
                model = from_config(config or self.config, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # as above
            raise UserError(f"{self.source}: transformers cannot build it from its config ({one_line(error)})") from error
        model.tie_weights()  # moving to the meta device separated tied parameters
        return model

    def skeleton(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The model to compute with, its parameters on the meta device; ``dtype`` None is the stored one."""
        stored = self.config.dtype
        if stored is None:
            kinds = [FLOATS[entry.dtype] for entry in self.tensors.values() if entry.dtype in FLOATS]
            stored = kinds[0] if kinds else torch.float32
        with init_empty_weights(include_buffers=False):
            model = from_config(self.config, trust_remote_code=self.trust_remote_code, dtype=dtype or stored)
        model.tie_weights()
        return model.requires_grad_(False)


def hub_of(source: str) -> str | None:
    """A source if it is an id on the Hub, None if it is a folder or a file."""
    return source if HUB_ID.fullmatch(source) and not source.endswith(".gguf") and not Path(source).expanduser().exists() else None


def from_config(config: PreTrainedConfig, *, trust_remote_code: bool = False, dtype: torch.dtype | None = None) -> nn.Module:
    """A model built from a copy of its config, in eval mode; what its tensors are follows from the context."""
    with quiet():
        options = {} if dtype is None else {"dtype": dtype}
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code, **options).eval()


def _sample(entry: Entry) -> bytes:
    """Bytes from the middle of a tensor; a file that was not in memory is not read ahead, which would slow its copying later."""
    with entry.file.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        stream.seek(entry.start + max(0, entry.bytes - SAMPLE_BYTES) // 2)
        return stream.read(min(SAMPLE_BYTES, entry.bytes))


def check_whole(who: str, info: dict) -> None:
    """Raise a UserError if transformers' report says that weights were missing or of another shape."""
    for kind in ("missing_keys", "mismatched_keys"):
        if info.get(kind):
            example = f"{kind.replace('_', ' ')}: {min(map(str, info[kind]))}"
            raise UserError(f"{who} lacks weights when loaded ({example}); they would be drawn at random: download or save it again")


def aligned(model: nn.Module) -> nn.Module:
    """Move memory-mapped CPU weights to aligned memory: misaligned ones make other kernels run, with other last bits."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first informative line of an exception's text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _stable(folder: Path) -> str:
    """The config as it is on disk, without what does not change the model; no library's defaults come in."""
    volatile = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in raw.items() if key not in volatile}, sort_keys=True)


def open_checkpoint(source: str | Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Find a model and check its files, reading no weights.

    Args:
        source: a folder, a ``.gguf`` file (turned once into a plain model in the user's cache), or a Hub id.
    Raises:
        UserError: no model there, an encoder, broken or missing files, pickled weights, or remote code needed.
    """
    folder = _resolve(str(source), trust_remote_code)
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} is no model folder: it has no config.json; give a Hugging Face model, a Hub id or a .gguf file")
    config = _read_config(str(source), folder, trust_remote_code)
    return Checkpoint(str(source), folder, config, read_index(folder), trust_remote_code)


def _resolve(source: str, trust_remote_code: bool) -> Path:
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"no file {path}; give an existing .gguf file, a folder or a Hub id")
        return plain_from_gguf(path)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file that is no model; give a folder, a .gguf file or a Hub id")
    if not HUB_ID.fullmatch(source):
        raise UserError(f"no folder {path}; give an existing folder, a .gguf file or a Hub id such as org/name")
    return _download(source, trust_remote_code)


def _download(source: str, trust_remote_code: bool) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES + (["*.py"] if trust_remote_code else [])))
    except Exception as error:  # the Hub client raises many kinds: offline, gated, missing, rate limits
        raise UserError(
            f"{source} is no folder here and cannot be fetched from the Hub ({one_line(error)}): check the name and the network"
        ) from error


def _read_config(source: str, folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = raw.get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is not readable ({one_line(error)}): download or save it again") from error
    if raw.get("auto_map") and not trust_remote_code and model_type not in CONFIG_MAPPING_NAMES:
        raise UserError(f"{source} ({model_type}) needs code that comes with the model; read it, then pass --trust-remote-code")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # validation errors come in many classes
        raise UserError(f"{source}: transformers does not accept its config.json ({one_line(error)})") from error
    _check_decoder(source, config)
    return config


def _check_decoder(source: str, config: PreTrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise UserError(f"{source} ({config.model_type}) is an encoder-decoder; shallower works on decoders only")
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not known and not remote:
        raise UserError(
            f"{source} ({config.model_type}) is not a model that AutoModelForCausalLM loads; "
            "give a decoder language model (of a multimodal model, its text part)"
        )
    architectures = config.architectures or []
    if architectures and known and all(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in architectures):
        raise UserError(f"{source} is an encoder ({architectures[0]}); give a causal language model")


def cache_folder() -> Path:
    """Where converted models are kept: $SHALLOWER_CACHE, or shallower below the user's cache folder."""
    base = os.environ.get("SHALLOWER_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "shallower"


def plain_from_gguf(file: Path) -> Path:
    """A plain safetensors model made once from a .gguf file, in the user's cache under the file's hash.

    The weights are dequantised to fp32, in which they are exact. A model loaded from GGUF keeps a quantisation config
    that makes it unsavable, so the model is rebuilt as a plain one.

    Raises:
        UserError: transformers cannot read the file.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_folder() / f"{file.stem}-{digest}"
    if (target / "config.json").is_file():
        return target
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # gguf and transformers raise many kinds for an unreadable file
        raise UserError(f"{file} cannot be read as a GGUF model ({one_line(error)})") from error
    content = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        content.pop(name, None)
    with init_empty_weights(include_buffers=False):
        plain = from_config(type(loaded.config).from_dict(content))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    with quiet(), new_folder(target, overwrite=True) as folder:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return target
