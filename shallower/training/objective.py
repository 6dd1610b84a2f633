"""The loss of next-token prediction without ever holding all logits: only places that bear a loss, a chunk at a time."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

CHUNK_BYTES = 64 << 20  # of fp32 logits that exist at once
EXACT = 1e-4  # of the largest logit: how far decoder and head by hand may be from the model's own logits


class ChunkedLoss(torch.autograd.Function):
    """Sum of the cross entropies of ``hidden @ weight.T + bias`` in nats; gradients are made in the forward pass.

    A chunk of places at a time: its logits, their softmax and its share of the gradients exist only while it is worked on,
    so the memory does not grow with places times vocabulary. The head is multiplied three times, as without chunks.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
            needed = ctx.needs_input_grad
            matrix, offset = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
            grads = [torch.empty_like(hidden) if needed[0] else None]
            grads += [torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None]
            grads += [torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None]
            total = hidden.new_zeros((), dtype=torch.float32)
            rows = max(1, CHUNK_BYTES // (4 * len(weight)))
            for start in range(0, len(hidden), rows):
                part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
                logs = linear(part, matrix, offset).float().log_softmax(-1)
                total -= logs.gather(1, wanted).sum()
                if not any(needed):
                    continue
                slope = logs.exp_().scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=torch.float32))
                if grads[2] is not None:
                    grads[2] += slope.sum(0)
                slope = slope.to(hidden.dtype)
                if grads[0] is not None:
                    grads[0][start : start + rows] = slope @ matrix
                if grads[1] is not None:
                    grads[1] += slope.T @ part
            ctx.save_for_backward(*grads)
            ctx.kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        made = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return *(None if tensor is None else (tensor * grad).to(kind) for tensor, kind in made), None


class Objective(nn.Module):
    """A model with its loss: tokens, positions and which tokens bear a loss -> the sum of their NLL in nats.

    Where the model is a decoder with a plain linear head (seen by comparing the two with the model's own logits once), the
    head is applied in chunks, else the model's logits are taken whole. Losses that balance experts are left out.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        decoder, head = _ends(model)
        self._parts = [(decoder, head)] if decoder is not None else []  # in a list: they are the model's own modules

    @property
    def chunked(self) -> bool:
        return bool(self._parts)

    def forward(
        self,
        tokens: Int[Tensor, "row place"],
        positions: Int[Tensor, "row place"] | None,
        bearing: Bool[Tensor, "row place"],
    ) -> Float[Tensor, ""]:
        """``bearing`` tells the tokens that are to be predicted; ``positions`` None counts from 0 in every row."""
        given = {"input_ids": tokens, "use_cache": False} | ({} if positions is None else {"position_ids": positions})
        mask = bearing[:, 1:]
        targets = tokens[:, 1:][mask]
        if not self.chunked:
            return cross_entropy(self.model(**given).logits[:, :-1][mask].float(), targets, reduction="sum")
        decoder, head = self._parts[0]
        hidden = decoder(**given)[0][:, :-1][mask]
        if torch.is_autocast_enabled(hidden.device.type):  # the last norm may have left it in fp32
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return ChunkedLoss.apply(hidden, head.weight, head.bias, targets)


def _ends(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """(decoder, head) that together give the model's own logits; (None, None) where there is no such pair."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return None, None
    tokens = torch.arange(1, 9, device=head.weight.device)[None]
    training = model.training
    try:
        with torch.no_grad():
            wanted = model.eval()(input_ids=tokens, use_cache=False).logits
            for decoder in (model.get_decoder(), getattr(model, model.base_model_prefix, None)):
                if decoder is None or decoder is model:
                    continue
                got = _by_hand(decoder, head, tokens)
                if got is not None and got.shape == wanted.shape and float((got - wanted).abs().max()) <= EXACT * float(wanted.abs().max()):
                    return decoder, head
    finally:
        model.train(training)
    return None, None


def _by_hand(decoder: nn.Module, head: nn.Linear, tokens: Tensor) -> Tensor | None:
    try:
        return head(decoder(input_ids=tokens, use_cache=False)[0])
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError):  # no decoder of that form
        return None


@torch.no_grad()
def isolates(model: nn.Module) -> bool:
    """Whether positions that start again keep two documents in one row from seeing each other, as in separate rows."""
    device = next(model.parameters()).device
    one, other = torch.arange(5, 11, device=device)[None], torch.arange(11, 19, device=device)[None]
    positions = torch.cat([torch.arange(6), torch.arange(8)])[None].to(device)
    training = model.training
    model.eval()
    try:
        alone = torch.cat([model(input_ids=part, use_cache=False).logits for part in (one, other)], dim=1)
        packed = model(input_ids=torch.cat([one, other], dim=1), position_ids=positions, use_cache=False).logits
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes no positions
        return False
    finally:
        model.train(training)
    return float((alone - packed).abs().max()) <= EXACT * float(alone.abs().max())
