"""Files of a model on the Hugging Face Hub: only the weight files that its index names, or their headers alone."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download

from ..errors import UserError
from ..storage.index import INDEX, PICKLES, SINGLE, TensorEntry
from ..storage.paths import parse_json
from .loading import one_line

T = TypeVar("T")
SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*", "README.md")
HUB_SHARD = re.compile(r"[^/\\]+\.safetensors")


def fetch_files(source: str, *, python: bool) -> Path:
    """The folder in the Hub's cache with the model's small files and with the weight files that its index names, no
    other copies.

    Raises:
        UserError: it cannot be reached, or there is nothing to fetch.
    """
    folder = _snapshot(source, _small(python))
    revision = folder.name
    names = _file_names(source, folder.name)
    if names is None:  # offline: what is in the cache decides
        return _snapshot(source, [SINGLE, *shards_of(folder)], revision)
    files = [SINGLE] if SINGLE in names else shards_of(folder)
    if not files:
        _refuse(source, names)
    return _snapshot(source, files, revision)


def fetch_headers(source: str, *, python: bool) -> tuple[Path, dict[str, TensorEntry], dict[Path, str]]:
    """(folder with the small files, where each tensor would lie, weight file -> SHA-256), nothing but headers read of
    the weights.

    Raises:
        UserError: as for ``fetch_files``.
    """
    folder = _snapshot(source, _small(python))
    api = HfApi()
    revision = folder.name
    names = _file_names(source, revision)
    files = [SINGLE] if names is None or SINGLE in names else shards_of(folder)
    if names is not None and not files:
        _refuse(source, names)
    tensors: dict[str, TensorEntry] = {}
    for name in files:
        head = _ask_hub(source, lambda name=name: api.parse_safetensors_file_metadata(source, name, revision=revision))
        for tensor, info in head.tensors.items():
            start, end = info.data_offsets
            tensors[tensor] = TensorEntry(folder / name, info.dtype, tuple(info.shape), start, end)
    paths = _ask_hub(source, lambda: list(api.get_paths_info(source, files, revision=revision)))
    return folder, tensors, {folder / one.path: (one.lfs.sha256 if one.lfs else one.blob_id) for one in paths}


def shards_of(folder: Path) -> list[str]:
    """The weight files that a folder's index names; none where it has no index, or one that names anything else."""
    path = folder / INDEX
    if not path.is_file():
        return []
    content = parse_json(path.read_bytes(), str(path))
    where = content.get("weight_map") if isinstance(content, dict) else None
    names = {name for name in where.values() if isinstance(name, str)} if isinstance(where, dict) else set()
    return sorted(name for name in names if HUB_SHARD.fullmatch(name))


def _small(python: bool) -> list[str]:
    return [*SMALL_FILES, *(["*.py"] if python else [])]


def _snapshot(source: str, patterns: Iterable[str], revision: str | None = None) -> Path:
    return Path(_ask_hub(source, lambda: snapshot_download(source, revision=revision, allow_patterns=list(patterns))))


def _file_names(source: str, revision: str) -> set[str] | None:
    """The names of all files, or None where the Hub cannot be asked."""
    try:
        return set(HfApi().list_repo_files(source, revision=revision))
    except Exception:  # offline, or a mirror that serves files only
        return None


def _ask_hub(source: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception as error:  # the Hub client raises many kinds: offline, gated, missing, rate limits
        raise UserError(
            f"{source} is no folder here and cannot be fetched from the Hub ({one_line(error)}): check the "
            "name and the network"
        ) from error


def _refuse(source: str, names: set[str]) -> Any:
    pickled = sorted(name for name in names if any(Path(name).match(pattern) for pattern in PICKLES))
    what = f"only pickled weights ({pickled[0]}), which can run code when read" if pickled else "no safetensors weights"
    raise UserError(f"{source} holds {what}: give a model with safetensors weights")
