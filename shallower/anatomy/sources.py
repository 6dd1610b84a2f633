"""Model sources: a folder, a Hub id or a .gguf file -> a Checkpoint. Safetensors only.

Remote code only when asked.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..errors import UserError, argument
from ..storage.gguf import GgufHeader, is_gguf, origin_of, read_gguf
from ..storage.index import TensorEntry, read_index
from ..storage.paths import parse_json, place
from .agreement import check_buildable, check_depth, check_files
from .custom import is_custom, read_custom
from .gguf import header_config, plain_from_gguf
from .hub import fetch_files, fetch_headers
from .loading import HUB_ID, Checkpoint, from_config, one_line, quiet

CONFIG, ADAPTER = "config.json", "adapter_config.json"
LARGEST_CONFIG = 64 << 20  # bytes of a config that are read


def open_checkpoint(source: str | Path, *, trust_remote_code: bool = False, whole: bool = True) -> Checkpoint:
    """Find a model and hold its config against its files, reading no weights.

    Args:
        source: a folder, a ``.gguf`` file (turned once into a plain model in the user's cache), or a Hub id.
        whole: the weights will be needed; else a Hub id's headers are all that is fetched, and a .gguf file is not
            turned into a model.
    Raises:
        UserError: no model there, an encoder, an adapter, files that are broken, missing or of another model, pickled
            weights, or remote code needed.
    """
    path = place(source)
    if is_gguf(path):
        return _from_gguf(str(source), path, whole=whole)
    tensors: dict[str, TensorEntry] | None = None
    hashes: dict[Path, str] = {}
    if path.is_dir():
        folder = path
    elif path.exists():
        raise UserError(f"{path} is a file that is no model; give a folder, a .gguf file or a Hub id")
    elif not HUB_ID.fullmatch(str(source)):
        raise UserError(f"no folder {path}; give an existing folder, a .gguf file or a Hub id such as org/name")
    elif whole:
        folder = fetch_files(str(source), python=trust_remote_code)
    else:
        folder, tensors, hashes = fetch_headers(str(source), python=trust_remote_code)
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"{source} holds an adapter ({ADAPTER}), which transformers would put on top of another model's "
            "weights: merge it first "
            "(merge_and_unload of peft, then save_pretrained), or move it away"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{source} is no model folder: it has no {CONFIG}; give a Hugging Face model, a Hub id or a .gguf file"
        )
    raw, config = _read_config(str(source), folder, trust_remote_code)
    tensors = read_index(folder) if tensors is None else tensors
    checkpoint = Checkpoint(str(source), folder, config, tensors, trust_remote_code, raw, hashes=hashes, whole=whole)
    _check(checkpoint)
    return checkpoint


def _from_gguf(source: str, file: Path, *, whole: bool) -> Checkpoint:
    if not file.is_file():
        raise UserError(f"no file {file}; give an existing .gguf file, a folder or a Hub id")
    header = read_gguf(file)
    origin = origin_of(header)
    marks = {
        "origin": origin,
        "packed": (header.bytes, header.storage),
        "original": header.original_layers,
    }
    if whole:
        folder = plain_from_gguf(header, origin)
        raw, config = _read_config(source, folder, False)
        checkpoint = Checkpoint(source, folder, config, read_index(folder), raw=raw, **marks)
    else:
        config = _gguf_config(source, header)
        checkpoint = Checkpoint(source, file.with_suffix(""), config, {}, whole=False, **marks)
    _check(checkpoint)
    return checkpoint


def _gguf_config(source: str, header: GgufHeader) -> PreTrainedConfig:
    config = header_config(header)
    _check_decoder(source, config)
    return config


def _read_config(source: str, folder: Path, trust_remote_code: bool) -> tuple[dict[str, Any], PreTrainedConfig]:
    """(the file's own content, transformers' reading of it)."""
    path = folder / CONFIG
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path} is larger than {LARGEST_CONFIG >> 20} MiB: is it a config?")
    raw = parse_json(path.read_bytes(), str(path))
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} is not readable (it holds a {type(raw).__name__} instead of fields): download or save it again"
        )
    model_type = raw.get("model_type")
    architectures = raw.get("architectures")
    if not isinstance(model_type, str):
        raise UserError(f"{path}: model_type is {model_type!r}; the name of an architecture is needed")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise UserError(f"{path}: architectures is {str(architectures)[:80]}; a list of class names is needed")
    mapped = raw.get("auto_map")
    if mapped is not None and not isinstance(mapped, dict):
        raise UserError(f"{path}: auto_map is a {type(mapped).__name__}; fields that name classes are needed")
    ours = is_custom(raw)
    if mapped and not trust_remote_code and model_type not in CONFIG_MAPPING_NAMES and not ours:
        raise UserError(
            f"{source} ({model_type}) needs code that comes with the model; read it, then pass "
            f"{argument('trust_remote_code', True)}"
        )
    try:
        with quiet():
            if ours:
                config = read_custom(source, raw)
            else:
                config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _check_decoder(source, config)
    except UserError:
        raise
    except Exception as error:  # validation errors come in many classes
        raise UserError(f"{source}: transformers does not accept its config.json ({one_line(error)})") from error
    return raw, config


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


def _check(checkpoint: Checkpoint) -> None:
    """Hold the config against the files before anything is built at full size."""
    source = checkpoint.source
    config = checkpoint.config
    tensors = checkpoint.tensors
    if not tensors:
        return
    check_depth(source, config, tensors)
    check_buildable(source, lambda: from_config(config, trust_remote_code=checkpoint.trust_remote_code), tensors)
    check_files(source, checkpoint.shapes, checkpoint.names, tensors, plain=checkpoint.quantised is None)
