"""Opened model: its files, its stack, its record, and its weights once somebody asks for them."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..artifacts import ModelRecord, Removal, Units
from ..artifacts.units import LAYER, LAYER_WIDTH, WIDTH, check_units_kind
from ..errors import Refusal, UserError, argument
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..storage.paths import parse_json
from .config import ConfigSolver
from .devices import checked_device
from .disk import storage_of_weights
from .layer_tables import layer_sizes
from .loading import Checkpoint, changed_by_loading, from_config, parse_dtype, running_form, unfilled, unlogged
from .offload import Onloader, stand_ins
from .patch import Patch, patched
from .quantised import check_plain, refuse
from .sources import open_checkpoint
from .stack import Stack, check_causal, dry_tokens, find_stack, parameter_count, sound_tokens
from .units import LayerParts, Steps, groups_of, lessened, parts_of, units_listing, without

PARTS_PROBE = (1, 8)  # samples and positions on which parts of layers are looked for
GROUPS_PROBE = (1, 16)  # the same for groups of parts: more, so that each neuron is awake somewhere
SIDE_FILE = "shallower.json"
CPU_BATCH_TOKENS = 1280  # rows of a batch on a CPU
RESIDENT_SHARE = 0.7  # of all memory that resident weights may take; the rest is for streams, gradients and logits
OUTLINES = 32  # outlines of models that are remembered
_OUTLINES: dict[str, Stack] = {}
STREAMS_INSTEAD = "take a criterion that looks at streams or losses (block_influence, angular, perplexity)"
UNPACKED = 4  # bytes of a weight of a .gguf file when it is unpacked, as float32


class Model:
    """A decoder language model, opened but not loaded.

    Args:
        source: a folder, a Hub id or a .gguf file.
        dtype: what to compute in (fp32, bf16, fp16); None for the stored one.
        device: a torch device; None for CUDA where there is one, else the CPU.
        trust_remote_code: run code that comes with the model.
        layered: keep one layer in memory, the weights staying on disk; None does so where they would not fit.
        max_batch_tokens: tokens that run through a layer at once; None follows from the device and its total memory.
        whole: its weights will be needed; else only headers are read (see ``open_checkpoint``).
        lean: a layered model takes as little memory as can be, for these tokens only.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        layered: bool | None = None,
        max_batch_tokens: int | None = None,
        whole: bool = True,
        lean: torch.Tensor | None = None,
    ):
        self.dtype = parse_dtype(dtype)
        self.device = checked_device(device)
        self.checkpoint: Checkpoint = open_checkpoint(source, trust_remote_code=trust_remote_code, whole=whole)
        self._layered = layered
        self._lean = lean
        self._batch_tokens = max_batch_tokens

    @cached_property
    def layered(self) -> bool:
        """Whether one layer at a time is read from disk: as asked, else where the weights would not fit."""
        if self._layered is not None:
            why = f"only plain weights are read layer by layer: run without {argument('layered', True)}"
            refuse(self.checkpoint.source, self.checkpoint.quantised if self._layered else None, why)
            return self._layered
        if self.checkpoint.quantised is not None:
            return False
        needed, total = self.checkpoint.loaded_bytes(self.dtype), total_memory(self.device)
        if needed > RESIDENT_SHARE * total:
            say(
                f"{needed / 1e9:.1f} GB of weights do not fit {total / 1e9:.1f} GB of memory: one layer at a "
                f"time ({argument('layered', True)})"
            )
        return needed > RESIDENT_SHARE * total

    @cached_property
    def batch_tokens(self) -> int:
        """Most tokens that run through a layer at once in a walk that needs no gradients.

        On a CPU about a thousand rows keep a layer's products busy while its streams stay in the cache: ten samples of
        128 tokens, the usual ones, are one batch, an eighth faster than two halves. On a GPU more, within a
        thirty-second of its memory. It follows from settings and total memory only, never from what is free.
        """
        if self._batch_tokens is not None:
            return self._batch_tokens
        if not self.device.startswith("cuda"):
            return CPU_BATCH_TOKENS
        width = getattr(self.checkpoint.config.get_text_config(), "hidden_size", None) or 4096
        return min(32768, max(1024, total_memory(self.device) // 32 // (128 * width)))

    @cached_property
    def outline(self) -> Stack:
        """The stack found by a dry forward without weights, and without its layers; found once per config."""
        config = self.checkpoint.config
        if self.checkpoint.trust_remote_code:  # its code may have changed
            return self._find_outline()
        key = f"{type(config).__qualname__} {config.to_json_string(use_diff=False)}"
        if key not in _OUTLINES:
            if len(_OUTLINES) == OUTLINES:
                _OUTLINES.clear()
            _OUTLINES[key] = self._find_outline()
        return _OUTLINES[key]

    def _find_outline(self) -> Stack:
        config = self.checkpoint.config
        trust = self.checkpoint.trust_remote_code
        try:
            with unlogged("torch._subclasses.fake_tensor"), FakeTensorMode(), unfilled():
                stack = find_stack(from_config(config, trust_remote_code=trust, dtype=torch.bfloat16))
        except Exception:  # some operations have no kernel without data, some configs build nothing: loading will tell
            with self.dry() as module, running_form(self.checkpoint.source, config):
                stack = find_stack(module)
        return replace(stack, layers=())

    @cached_property
    def module(self) -> nn.Module:
        """The loaded model, checked to be a decoder.

        Where it is layered, each layer comes from disk when it is called.
        """
        if not self.layered:
            module = self.checkpoint.load(dtype=self.dtype, device=self.device)
            with running_form(self.checkpoint.source, self.checkpoint.config):
                check_causal(module)
            return module
        module = self.checkpoint.skeleton(self.dtype)
        if changed := changed_by_loading(self.checkpoint.shapes):
            raise UserError(
                f"{self.checkpoint.source}: transformers changes {changed[0]} when it has read the file, which reading "
                f"layer by layer does not: run without {argument('layered', True)}"
            )
        with stand_ins(module, self.device), running_form(self.checkpoint.source, self.checkpoint.config):
            check_causal(module)
            name = find_stack(module).name
        self.onloader = Onloader(self.checkpoint, module, name, self.device, self._lean)
        return module

    @contextlib.contextmanager
    def dry(self) -> Iterator[nn.Module]:
        """The module for seeing how it behaves: where it is layered, with stand-ins for the weights of its layers."""
        if not self.layered:
            yield self.module
            return
        module = self.module
        with self.onloader.paused(), stand_ins(module, self.device):
            yield module

    def layer(self, index: int) -> nn.Module:
        """A layer with its weights in memory."""
        layer = self.stack.layers[index]
        if self.layered:
            self.onloader.need(index)
        return layer

    def check_plain(self, what: str, instead: str = STREAMS_INSTEAD) -> None:
        """Raise a UserError if the loaded weights are packed numbers, which ``what`` would take for weights."""
        checkpoint = self.checkpoint
        check_plain(checkpoint.source, checkpoint.quantised, unpacked=checkpoint.unpacks, what=what, instead=instead)

    def patched(self, patch: Patch) -> contextlib.AbstractContextManager[None]:
        """Change weights while inside."""
        return patched(self.module, patch)

    def release(self) -> None:
        """Free what lies outside the layers of a layered model.

        The next whole forward, or recording, reads it again.
        """
        if self.layered:
            self.onloader.release()

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return "module" in self.__dict__

    def unload(self) -> None:
        """Free the weights; they are loaded again when next needed."""
        if "onloader" in self.__dict__:
            self.onloader.close()  # its hooks hold it in a circle
        for name in ("module", "stack", "replay", "onloader"):
            self.__dict__.pop(name, None)

    @cached_property
    def stack(self) -> Stack:
        """The stack of the loaded model."""
        return self.outline.of(self.module)

    @cached_property
    def parts(self) -> tuple[LayerParts, ...]:
        """Attention and MLP of every layer.

        Raises:
            Refusal: a layer has none that can be told apart; names it.
        """
        self.check_plain("finding parts of layers", "take whole layers")
        with self.dry() as module:
            tokens = sound_tokens(module, dry_tokens(self.vocabulary, *PARTS_PROBE))
            return parts_of(self.outline.of(module), module, tokens)

    def units(self, kind: str = LAYER) -> Units:
        """All units of a kind: ``layer``, ``attention``, ``mlp``, ``sublayer``, ``width`` or ``layer+width``.

        Raises:
            UserError: no such kind, or no layer has such a part.
            Refusal: a layer has no parts that can be told apart; names it.
        """
        check_units_kind(kind)
        if kind == LAYER:
            return Units.of_layers(self.record.layer_parameters)
        if kind == WIDTH:
            return self._width_units
        if kind == LAYER_WIDTH:
            whole = Units.of_layers(self.record.layer_parameters).listing
            return Units(kind, (*whole, *self._width_units.listing), tuple(self.record.layer_parameters))
        listing = units_listing(self._shapes.get_submodule(self.outline.name), self.parts, kind)
        if not any(unit.part for unit, _ in listing):
            raise UserError(
                f"no layer of {self.checkpoint.source} has such a part beside another one; remove whole layers",
                units=kind,
            )
        return Units(kind, listing, tuple(self.record.layer_parameters))

    @cached_property
    def _width_units(self) -> Units:
        why = "packed weights cannot be cut by rows and columns: make the unquantised model narrower, and quantise that"
        refuse(self.checkpoint.source, self.checkpoint.quantised, why)
        shapes = self._shapes.get_submodule(self.outline.name)
        parts, reasons = self._grouped
        listing = units_listing(shapes, parts, WIDTH)
        if not listing:
            told = "; ".join(f"its {name}s: {reason}" for name, reason in reasons.items())
            raise Refusal(f"{self.checkpoint.source} cannot be made narrower ({told}): remove layers or parts of them")
        for name, reason in reasons.items():
            say(f"its {name}s keep their width: {reason}")
        return Units(WIDTH, listing, tuple(self.record.layer_parameters))

    @cached_property
    def _grouped(self) -> tuple[tuple[LayerParts, ...], dict[str, str]]:
        with self.dry() as module:
            tokens = sound_tokens(module, dry_tokens(self.vocabulary, *GROUPS_PROBE))
            return groups_of(self.outline.of(module), module, tokens, self.parts)

    @property
    def grouped(self) -> tuple[LayerParts, ...]:
        """Attention and MLP of every layer, with the groups by which they can be made narrower."""
        return self._grouped[0]

    @property
    def kept_widths(self) -> dict[str, str]:
        """Part -> why some layer's cannot be made narrower."""
        return self._grouped[1]

    def lessened(self, index: int, removal: Removal) -> contextlib.AbstractContextManager[None]:
        """Let a layer that stays do without the parts that it loses while inside."""
        return lessened(self.stack, index, removal, self.parts_for(removal))

    def parts_for(self, *removals: Removal) -> tuple[LayerParts, ...]:
        """The parts where one of the removals takes some, else nothing."""
        if any(removal.narrows for removal in removals):
            return self.grouped
        return self.parts if any(removal.kind == "part" for removal in removals) else ()

    def steps(self, *removals: Removal) -> Steps:
        """The steps of a walk that these removals ask for: layers, or parts where one of them takes some."""
        parts = self.parts_for(*removals)
        return Steps.of_parts(parts) if parts else Steps.of_layers(len(self.outline.interfaces))

    def steps_for(self, units: Units, removal: Removal) -> Steps:
        """The steps of a walk that looks at these units while some are left out."""
        return self.steps(removal) if units.whole else Steps.of_parts(self.parts)

    def without(self, removal: Removal) -> contextlib.AbstractContextManager[None]:
        """Run the model without some units while inside."""
        return without(self.stack, removal, self.parts_for(removal))

    @property
    def stream_bytes(self) -> int:
        """Bytes of the residual stream per token."""
        return self.stack.width * self.module.dtype.itemsize

    @cached_property
    def tokenizer(self):
        return self.checkpoint.tokenizer()

    @contextlib.contextmanager
    def check_length(self, length: int) -> Iterator[None]:
        """Say so, if the model has no positions for so many tokens."""
        try:
            yield
        except IndexError as error:
            known = self.checkpoint.positions
            limit = f"its config says at most {known}" if known else "its position table is smaller"
            raise UserError(f"the model cannot embed so many positions ({limit}); lower it", length=length) from error

    @cached_property
    def solver(self) -> ConfigSolver:
        return ConfigSolver(self.checkpoint, self.outline.name)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that can be both read and written."""
        ends = (self._shapes.get_input_embeddings(), self._shapes.get_output_embeddings())
        return min(len(end.weight) for end in ends if getattr(end, "weight", None) is not None)

    @property
    def _shapes(self) -> nn.Module:
        return self.checkpoint.shapes

    @cached_property
    def record(self) -> ModelRecord:
        sizes = layer_sizes(self._shapes, self.outline.name, self.solver.tables)
        return ModelRecord(
            source=self.checkpoint.source,
            family=self.checkpoint.config.model_type,
            layers=len(sizes),
            parameters=parameter_count(self._shapes),
            layer_parameters=sizes,
            fingerprint=self.checkpoint.fingerprint,
            original=self._original(len(sizes)),
            lookup_parameters=self._lookup(),
            weight_bytes=self.checkpoint.bytes or UNPACKED * parameter_count(self._shapes),
            layer_bytes=self._layer_bytes(sizes),
            storage=storage_of_weights(self.checkpoint),
            packed_bytes=self.checkpoint.packed[0],
            packed_storage=self.checkpoint.packed[1],
        )

    def _layer_bytes(self, sizes: list[int]) -> list[int]:
        """Stored bytes that go with each layer.

        What several share, and parts of tables, are counted with the layer that holds them.
        """
        if not self.checkpoint.tensors:
            return [UNPACKED * size for size in sizes]
        layers = len(sizes)
        totals = [0] * len(sizes)
        for name, place in self.solver.places().items():
            if 0 <= place.layer < layers:
                totals[place.layer] += self.checkpoint.tensors[name].bytes
        for name in self.solver.on_disk(self.solver.tables):
            totals = [size + self.checkpoint.tensors[name].bytes // layers for size in totals]
        return totals if any(totals) else []

    def kept_wide(self, dtype: torch.dtype) -> set[str]:
        """Names in the files of weights that the architecture keeps in float32 where the others are stored in
        ``dtype``.
        """
        plan = self._shapes._get_dtype_plan(dtype)
        patterns = [re.compile(key.replace(".", r"\.").replace("*", ".*")) for key in plan]
        memory = self.checkpoint.names.memory
        return {disk for disk, name in memory.items() if any(pattern.search(name) for pattern in patterns)}

    def _lookup(self) -> int:
        """Parameters of an input embedding that is not the head too."""
        ends = [
            getattr(end, "weight", None)
            for end in (self._shapes.get_input_embeddings(), self._shapes.get_output_embeddings())
        ]
        return 0 if self.tied or ends[0] is ends[1] or ends[0] is None else ends[0].numel()

    @property
    def tied(self) -> bool:
        """Whether the config ties the input embedding to the head; a few configs do not say, and do not."""
        return bool(getattr(self.checkpoint.config.get_text_config(), "tie_word_embeddings", False))

    def _original(self, layers: int) -> list[int]:
        """This model's layers in the numbering of its first ancestor, from the file that an earlier pruning left."""
        side = self.checkpoint.folder / SIDE_FILE
        if not side.is_file():
            return self.checkpoint.original or list(range(layers))
        try:
            original = parse_json(side.read_bytes(), str(side))["original"]
        except (UserError, OSError, KeyError, TypeError) as error:
            raise UserError(f"{side} is not readable: restore it, or remove it to number the layers anew") from error
        sound = (
            isinstance(original, list) and len(original) == layers and all(type(i) is int and i >= 0 for i in original)
        )
        if not sound or original != sorted(set(original)):
            what = f"does not fit the model beside it ({layers} layers)"
            raise UserError(f"{side} {what}: restore it, or remove it to number the layers anew")
        return original
