"""Prefill and decode by hand, with the model's own cache: one forward per call, whatever the end token says."""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache, StaticCache

from ..errors import UserError
from .loading import Checkpoint, from_config, quiet, unfilled, unlogged
from .modeling_shallower import lacks_attention
from .stack import dry_tokens

PROMPT = 3  # tokens before the step that is watched: fewer than any window
CACHE_ARGUMENTS = ("past_key_values", "cache_params")  # under these names a forward takes a cache that was made outside


class Decoder:
    """``prefill`` a prompt, then ``step`` token by token; may be used again with prompts of the same shape.

    Args:
        module: a loaded causal language model.
        room: positions of a static cache, which is kept and reused; None lets the cache grow, as the model has it.
        compiled: run the steps through torch.compile, on CUDA as CUDA graphs; the prefill stays as it is.
    """

    def __init__(self, module: nn.Module, *, room: int | None = None, compiled: bool = False):
        self.module = module
        self.steps = module
        self.known = inspect.signature(module.forward).parameters
        self.cache: Any = None
        self.name = next((name for name in CACHE_ARGUMENTS if name in self.known), CACHE_ARGUMENTS[0])
        self.fixed: dict[str, Any] = {}
        if room is not None:
            self.fixed = {self.name: StaticCache(config=module.config, max_cache_len=room)}
        if compiled:
            mode = "reduce-overhead" if module.device.type == "cuda" else "default"
            self.steps = torch.compile(module, mode=mode, dynamic=False)

    @torch.no_grad()
    def prefill(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits behind the prompt, (batch, vocabulary); starts a new cache.

        Raises:
            UserError: the model returns no cache.
        """
        for cache in self.fixed.values():
            cache.reset()
        last = {"logits_to_keep": 1} if "logits_to_keep" in self.known else {}
        output = self.module(input_ids=tokens, use_cache=True, **self.fixed, **last)
        self.cache = self.fixed.get(self.name)
        for key in output:
            if key in self.known and not isinstance(output[key], Tensor):
                self.name, self.cache = key, output[key]
        if (
            self.cache is None and self.name in self.known
        ):  # a few fill the cache that they are given, but hand none out
            self.cache = DynamicCache(config=self.module.config)
            output = self.module(input_ids=tokens, use_cache=True, **{self.name: self.cache}, **last)
        if not self.cached_bytes and not lacks_attention(self.module):  # without any there is nothing to keep
            raise UserError(
                f"{type(self.module).__name__} keeps no cache of what it has read: bench measures cached decoding only"
            )
        return output.logits[:, -1]

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "batch 1"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits behind one more token of each row, (batch, vocabulary)."""
        output = self.steps(input_ids=tokens, use_cache=True, **{self.name: self.cache})
        self.cache = output.get(self.name, self.cache)
        return output.logits[:, -1]

    def grown(self, tokens: Int[Tensor, "batch 1"]) -> tuple[int, int]:
        """Bytes in the cache, and by how many it grows with one more token of each row."""
        before = self.cached_bytes
        self.step(tokens)
        return before, self.cached_bytes - before

    def rest(self) -> None:
        """Free a cache that grows; a static one stays, since compiled steps know its address."""
        if not self.fixed:
            self.cache = None

    @property
    def cached_bytes(self) -> int:
        """Bytes in the cache."""
        return cache_bytes(self.cache)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a cache holds, wherever they lie in it, each once.

    Single numbers, such as lengths, left out.
    """
    seen = set()
    sizes = {}
    todo = [cache]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, (nn.Module, type)):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            sizes[item.untyped_storage()._cdata, item.storage_offset(), item.numel()] = item.nbytes
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, (list, tuple)):
            todo += item
        elif hasattr(item, "__dict__"):
            todo += vars(item).values()
    return sum(size for (*_, count), size in sizes.items() if count > 1)


def cache_growth(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> int | None:
    """Bytes that a model's cache grows by per token and sequence while no sliding window is full; no weights are read.

    None where its operations do not run without data.
    """
    config, trust = checkpoint.config, checkpoint.trust_remote_code
    try:
        with unlogged("torch._subclasses.fake_tensor"), FakeTensorMode(), unfilled(), quiet():
            module = from_config(config, trust_remote_code=trust, dtype=torch.bfloat16)
            decoder = Decoder(module)
            count = module.get_input_embeddings().weight.shape[0]
            decoder.prefill(dry_tokens(count, 1, PROMPT))
            decoder.step(dry_tokens(count, 1, 1))
            return decoder.grown(dry_tokens(count, 1, 1))[1] * (dtype or torch.bfloat16).itemsize // 2
    except Exception:  # some operations have no kernel without data
        return None
