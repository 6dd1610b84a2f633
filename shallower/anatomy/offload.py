"""Offloading, one layer in memory: a skeleton without weights whose layers are read from disk when they are called,
the next one ahead.

A layer goes through transformers' own conversion, because many families have other tensor names on disk than in memory.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from ..errors import UserError, argument
from ..runtime.memory import total_memory
from ..storage.index import TensorEntry
from .fingerprint import shared_tensors
from .lean import lean_ends
from .loading import FLOATS, Checkpoint, align_weights, check_whole, one_line, quiet
from .names import names_in_model
from .patch import Patch, add_bias, drop_bias
from .stack import APART

WHOLE = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
TENSOR_DTYPES = FLOATS | WHOLE  # safetensors' spelling -> torch
READ_PIECE = 64 << 20
READERS = 8  # tensors of a layer that are read at once: one thread copies no faster than a few GB/s, even from a cache
NOISE = 1_000_003  # random numbers that stand-ins repeat; prime, so that no two rows are alike
OUTSIDE_UNIT = -1  # the unit of all weights that belong to no layer


class Onloader:
    """Reads the layers of a skeleton from disk when they are called; one is in memory, one is on its way.

    Args:
        checkpoint: where the weights are.
        skeleton: the model with parameters on the meta device, in the dtype to compute in.
        stack_name: dotted name of its decoder stack.
        device: where the layers go.
        lean: take as little memory as can be, for these tokens only (see ``lean_ends``).
    Raises:
        UserError: weights are missing, quantised, or shared by layers.
    """

    def __init__(
        self, checkpoint: Checkpoint, skeleton: nn.Module, stack_name: str, device: str, lean: Tensor | None = None
    ):
        self.checkpoint = checkpoint
        self.skeleton = skeleton
        self.prefix = stack_name + "."
        self.device = device
        self.layers = skeleton.get_submodule(stack_name)
        self.unexpected: set[str] = set()  # weights that the model has no place for, as far as they have been read
        self.units = self._units()
        self.lean = lean is not None
        self.ends = lean_ends(checkpoint, skeleton, lean) if self.lean and device == "cpu" else None
        self.present: int | None = None
        self.step = 1
        self.cuda = device.startswith("cuda")
        self.layer_reader = ThreadPoolExecutor(1, "reader")  # of layers, one ahead
        self.tensor_readers = ThreadPoolExecutor(1 if self.lean else min(READERS, os.cpu_count() or 1), "tensors")
        self.side = torch.cuda.Stream(device) if self.cuda else None  # copies the next layer while this one computes
        self.copied: dict[int, torch.cuda.Event] = {}
        self.coming: tuple[int, Future] | None = None
        self.uncached = sum(entry.bytes for entry in checkpoint.tensors.values()) > total_memory("cpu") / 2
        self.asleep = False
        self.patch: Patch = {}
        self.unchanged: dict[str, Tensor] = {}  # the changed weights of the layer in memory, as they are on disk
        self.fresh: set[str] = set()  # biases of the layer in memory that the model has not
        skeleton.onloader = self
        self._attach()

    def _attach(self) -> None:
        """Load what is outside the layers and let every layer be read when it is called."""
        self._wake()
        self.skeleton.register_forward_pre_hook(lambda *_: self._wake() if self.resting else None)
        for name, tensor in (*self.skeleton.named_parameters(), *self.skeleton.named_buffers()):
            if tensor.is_meta and not name.startswith(self.prefix):
                raise UserError(
                    f"{self.checkpoint.source} lacks {name}, which would be drawn at random: download or save it again"
                )
        for module in self.skeleton.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(self.device)
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda layer, _, index=index: self._before_forward(layer, index))

    def _wake(self) -> None:
        self._install(OUTSIDE_UNIT, self._read(OUTSIDE_UNIT))
        if self.ends is not None:
            self.ends.install()
        else:
            self.skeleton.tie_weights()
        self.resting = False

    def release(self) -> None:
        """Free what lies outside the layers until the model is called."""
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        self._free(module for module in self.skeleton.modules() if id(module) not in inside)
        self.skeleton.tie_weights()
        self.resting = True

    def close(self) -> None:
        """Free every weight, for good: what is still being read is waited for."""
        for pool in (self.layer_reader, self.tensor_readers):
            pool.shutdown(wait=True)
        self.coming = self.present = None
        self.unchanged.clear()
        self._free(self.skeleton.modules())
        trim()

    def _before_forward(self, layer: nn.Module, index: int) -> None:
        if not self.asleep and "forward" not in layer.__dict__:  # a replaced forward needs no weights
            self.need(index)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Read nothing while inside."""
        self.asleep = True
        try:
            yield
        finally:
            self.asleep = False

    @contextlib.contextmanager
    def patched(self, patch: Patch) -> Iterator[None]:
        """Change the weights as they are read while inside."""
        before = self.patch
        self._take(before | patch)
        try:
            yield
        finally:
            self._take(before)

    def _take(self, patch: Patch) -> None:
        """Change the layer in memory where it is, so that it is not read again; what lies outside is."""
        names = {name for name in patch.keys() | self.patch.keys() if patch.get(name) is not self.patch.get(name)}
        self.patch = patch
        here = [name for name in names if self.present is not None and name.startswith(f"{self.prefix}{self.present}.")]
        for name in here:
            if name in self.fresh:
                self.fresh.discard(name)
                drop_bias(self.skeleton, name)
                continue
            parameter = self.skeleton.get_parameter(name)
            parameter.data = self.unchanged.pop(name, parameter.data)
        self._change(here)
        if not self.resting and not all(name.startswith(self.prefix) for name in names):
            self.release()

    def _change(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.patch and self.patch[name].kind == "new":
                self.fresh.add(name)
                add_bias(self.skeleton, name, self.patch[name])
            elif name in self.patch:
                parameter = self.skeleton.get_parameter(name)
                self.unchanged[name] = parameter.data
                parameter.data = self.patch[name].of(parameter.data)

    def need(self, index: int) -> None:
        """Have this layer in memory and no other; begin to read the one that will follow."""
        if self.present == index:
            return
        before = self.present
        self.present = None
        if before is not None:
            self.step = 1 if (index - before) % len(self.layers) <= len(self.layers) // 2 else -1
            for name in self.fresh:
                drop_bias(self.skeleton, name)
            self.fresh.clear()
            self._free(self.layers[before].modules())
            if not self.cuda:
                trim()
        self._install(index, self._tensors_of(index))
        self.present = index
        following = (index + self.step) % len(self.layers)
        if following != index and not self.lean:
            self.coming = (following, self.layer_reader.submit(self._read, following))

    def _tensors_of(self, index: int) -> dict[str, Tensor]:
        coming = self.coming
        self.coming = None
        if coming is not None:
            tensors = coming[1].result()
            if coming[0] == index:
                return tensors
            del tensors
        return self._read(index)

    def _units(self) -> dict[int, list[str]]:
        """Layer -> names of its tensors on disk, as transformers would rename them."""
        if getattr(self.checkpoint.config, "quantization_config", None) is not None:
            raise UserError(
                f"{self.checkpoint.source} is quantised, and only plain weights are read layer by layer: run "
                f"without {argument('layered', True)}"
            )
        for places in shared_tensors(self.skeleton, self.prefix[:-1]):
            numbers = ", ".join(str(index) for index, _ in sorted(places))
            name = min(name for _, name in places)
            raise UserError(
                f"layers {numbers} share the tensor {name}, so they cannot be read one at a time: run "
                f"without {argument('layered', True)}"
            )
        self.mapping = get_model_conversion_mapping(self.skeleton)
        units: dict[int, list[str]] = {index: [] for index in (OUTSIDE_UNIT, *range(len(self.layers)))}
        for name, renamed in names_in_model(self.skeleton, self.checkpoint.tensors).items():
            number = renamed.removeprefix(self.prefix).partition(".")[0] if renamed.startswith(self.prefix) else ""
            unit = int(number) if number.isdigit() else OUTSIDE_UNIT
            if unit in units:
                units[unit].append(name)
            else:  # prediction layers behind the stack
                self.unexpected.add(renamed)
        return units

    def _read(self, unit: int) -> dict[str, Tensor]:
        """Tensors as they are on disk.

        Those that are stored narrower than they are used are widened, which is exact.
        """
        skipped = self.ends.skipped if self.ends is not None else ()
        names = [name for name in self.units[unit] if name not in skipped]
        tensors = dict(zip(names, self.tensor_readers.map(self._tensor, names), strict=True))
        if self.cuda:
            self.copied[unit] = self.side.record_event()
        return tensors

    def _tensor(self, name: str) -> Tensor:
        with torch.cuda.stream(self.side) if self.cuda else contextlib.nullcontext():
            tensor = read_tensor(self.checkpoint.tensors[name], uncached=self.uncached, pinned=self.cuda)
            if self.cuda:
                tensor = tensor.to(self.device, non_blocking=True)
            wider = tensor.is_floating_point() and tensor.dtype.itemsize < self.skeleton.dtype.itemsize
            return tensor.to(self.skeleton.dtype) if wider else tensor

    def _install(self, unit: int, tensors: dict[str, Tensor]) -> None:
        """Put tensors as they are on disk into their places, converted and cast as ``from_pretrained`` does."""
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(self.copied.pop(unit))
            for tensor in tensors.values():
                tensor.record_stream(
                    torch.cuda.current_stream(self.device)
                )  # not handed out again before it was computed with
        kind = self.skeleton.dtype
        plan = self.skeleton._get_dtype_plan(kind)
        settings = LoadStateDictConfig(
            weight_mapping=self.mapping, dtype=kind, dtype_plan=plan, device_map={"": torch.device(self.device)}
        )
        try:
            with quiet():
                info, _ = convert_and_load_state_dict_in_model(self.skeleton, tensors, settings)
        except Exception as error:  # conversions fail in many ways
            what = "what lies outside the layers" if unit == OUTSIDE_UNIT else f"layer {unit}"
            raise UserError(f"{self.checkpoint.source}: {what} cannot be read ({one_line(error)})") from error
        self.skeleton._adjust_missing_and_unexpected_keys(info)
        self.unexpected |= info.unexpected_keys
        mine = self._names(unit)
        check_whole(
            self.checkpoint.source, {"missing_keys": info.missing_keys & mine, "mismatched_keys": info.mismatched_keys}
        )
        if unit != OUTSIDE_UNIT:
            align_weights(self.layers[unit]).requires_grad_(False)
            self.unchanged.clear()
            self._change(name for name in self.patch if name.startswith(f"{self.prefix}{unit}."))
        else:
            self.skeleton.requires_grad_(False)
            self._change(name for name in self.patch if not name.startswith(self.prefix))

    def _names(self, unit: int) -> set[str]:
        """Names in memory of a layer's weights; of those outside a tied one may rightly be absent."""
        if unit == OUTSIDE_UNIT:
            return set()
        return {f"{self.prefix}{unit}.{name}" for name in self.layers[unit].state_dict()}

    @staticmethod
    def _free(modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=False
                    )


def read_tensor(entry: TensorEntry, *, uncached: bool = False, pinned: bool = False) -> Tensor:
    """One tensor read into aligned memory, which a GPU can copy from by itself where it is ``pinned``.

    ``uncached`` leaves nothing of it in the system's file cache.

    Raises:
        UserError: the file ended early.
    """
    raw = torch.empty(entry.bytes, dtype=torch.uint8, pin_memory=pinned)
    view = memoryview(np.asarray(raw)) if entry.bytes else memoryview(b"")
    done = 0
    handle = os.open(entry.file, os.O_RDONLY)
    try:
        while done < entry.bytes:
            count = os.preadv(handle, [view[done : done + READ_PIECE]], entry.start + done)
            if not count:
                raise UserError(f"{entry.file} ended early while it was read: is it being changed?")
            if uncached and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, entry.start + done, count, os.POSIX_FADV_DONTNEED)
            done += count
    finally:
        os.close(handle)
    if entry.dtype not in TENSOR_DTYPES:
        raise UserError(
            f"{entry.file} holds a tensor of type {entry.dtype}, which {argument('layered', True)} does not read: run "
            "without it"
        )
    return raw.view(TENSOR_DTYPES[entry.dtype]).view(entry.shape)


def trim() -> None:
    """Give freed memory back to the system.

    The C library keeps blocks below 32 MiB, which are whole layers of many models.
    """
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def stand_ins(skeleton: nn.Module, device: str) -> Iterator[None]:
    """Give a skeleton random weights that take the memory of its largest tensor, to see how it behaves.

    Then none again.

    Which way the stream takes through a model does not depend on its weights, so that can be judged without reading
    them. Every weight begins at another place of the same numbers: queries and keys with the same weights would let
    every token see itself alone.
    """
    count = sum(1 for _ in skeleton.parameters())
    largest = max((parameter.numel() for parameter in skeleton.parameters()), default=1) + APART * count
    block = torch.randn(min(largest, NOISE), generator=torch.Generator().manual_seed(0)).mul_(0.05)
    kinds = {parameter.dtype for parameter in skeleton.parameters()}
    noise = {kind: block.to(device, kind).repeat(-(-largest // len(block))) for kind in kinds}
    parameters = []
    replacements = {}
    for module in skeleton.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                parameters.append((module, key, parameter))
                if id(parameter) not in replacements:
                    start = APART * len(replacements)
                    values = noise[parameter.dtype][start : start + parameter.numel()].view(parameter.shape)
                    replacements[id(parameter)] = nn.Parameter(
                        values if parameter.dim() > 1 else torch.ones_like(values), requires_grad=False
                    )
                module._parameters[key] = replacements[id(parameter)]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else buffer.to(device)
    try:
        yield
    finally:
        for module, key, parameter in parameters:
            module._parameters[key] = parameter
