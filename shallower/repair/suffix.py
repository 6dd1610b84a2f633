"""Suffix loss, of the pruned model from some layer on: what a change of a layer does to the loss, without running the
layers in front of it again.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from ..anatomy.kernels import fast_products
from ..anatomy.model import Model
from ..anatomy.patch import Patch, patched
from ..artifacts.removal import Removal
from ..runtime import distributed
from ..walk.batching import batches, chunks, total_predictions
from ..walk.logits import head_nll
from ..walk.replay import replay_of
from .batch import part_of_layer


class SuffixLoss:
    """Streams of the pruned model in front of one retained layer, for the same tokens.

    ``pass_on`` takes them to the next.

    Args:
        model: the dense model, one that can be walked layer by layer.
        tokens: the tokens whose loss is asked for, of which each process takes its share.
        removal: what the pruned model lacks.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "sample position"], removal: Removal):
        self.model = model
        self.replay = replay_of(model)
        self.removal = removal
        self.retained = removal.stays(len(model.stack))
        self.batches = batches(model, distributed.share(tokens))
        self.predictions = total_predictions(tokens)
        self.recordings = [self.replay.record(batch) for batch in self.batches]
        self.streams = [recording.entering for recording in self.recordings]
        self.place = 0

    def pass_on(self, index: int, patch: Patch) -> None:
        """Take the streams through all retained layers up to this one, with the changes of each."""
        while self.place < len(self.retained) and self.retained[self.place] <= index:
            here = self.retained[self.place]
            self.streams = self._through(here, self.streams, part_of_layer(self.model, patch, here))
            self.place += 1

    def loss(self, index: int, patch: Patch) -> float:
        """Mean NLL in nats if this layer, the next one to be passed, has these changes.

        The streams stay where they are.
        """
        streams = self._through(index, self.streams, patch)
        for later in self.retained[self.place + 1 :]:
            streams = self._through(later, streams, {})
        total = 0.0
        with torch.no_grad(), fast_products(self.model.module):
            for stream, tokens in zip(streams, self.batches, strict=True):
                for block in chunks(self.model.vocabulary, tokens, stream.element_size()):
                    total += float(head_nll(self.replay, stream, tokens, block).double().sum())
        return float(distributed.all_sum(torch.tensor(total, dtype=torch.float64))) / self.predictions

    def _through(self, index: int, streams: list[Tensor], patch: Patch) -> list[Tensor]:
        model = self.model
        changed = patched(model.module, patch), model.lessened(index, self.removal)
        with torch.no_grad(), fast_products(model.module), changed[0], changed[1]:
            model.layer(index)
            return [
                self.replay.step(recording, index, stream)
                for recording, stream in zip(self.recordings, streams, strict=True)
            ]
