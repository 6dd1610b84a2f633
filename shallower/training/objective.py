"""Training objective, the loss of next-token prediction without ever holding all logits: only places that bear a loss,
a chunk at a time.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..anatomy.kernels import exact_products, fast_linear
from ..runtime.memory import by_device

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # of fp32 logits that exist at once
SHORT = (16, 64)  # tokens of the sequences from which the size of activations follows
EXACT = 1e-4  # of the largest logit: how far decoder and head by hand may be from the model's own logits


@dataclass(frozen=True)
class Soft:
    """How a student's logits are drawn to its teacher's.

    Attributes:
        nll, kl: weights of the two terms.
        temperature: T divides both logits; the term is T² KL(teacher || student), so that its gradients keep their
            size.
        top_k: only the teacher's largest logits count, made a distribution of their own; 0: all.
    """

    nll: float = 1.0
    kl: float = 1.0
    temperature: float = 1.0
    top_k: int = 0


class Head(NamedTuple):
    """The last hidden states of some places and the plain product that makes logits of them."""

    hidden: Float[Tensor, "kept width"]
    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, "vocabulary"] | None

    def logits(self, places: slice) -> Float[Tensor, "some vocabulary"]:
        bias = None if self.bias is None else self.bias.to(self.hidden.dtype)
        return fast_linear(self.hidden[places], self.weight.to(self.hidden.dtype), bias).float()


class ChunkedLoss(torch.autograd.Function):
    """Sums over places in nats: (loss, NLL, KL to the teacher) of the logits ``hidden @ weight.T + bias``.

    Gradients are made forward.

    A chunk of places at a time: its logits, their softmax and its share of the gradients exist only while it is worked
    on, so the memory does not grow with places times vocabulary. The head is multiplied three times, as without
    chunks. Without a teacher the loss is the NLL. The two parts are for telling only and have no gradients.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        teacher: Head | None,
        soft: Soft | None,
    ):
        with torch.autocast(hidden.device.type, enabled=False), torch.no_grad():
            needed = ctx.needs_input_grad
            matrix = weight.to(hidden.dtype)
            own = Head(hidden, matrix, bias)
            if teacher is not None:
                teacher = teacher._replace(weight=teacher.weight.to(teacher.hidden.dtype))  # once, not for every chunk
            grads = [torch.empty_like(hidden) if needed[0] else None]
            grads += [torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None]
            grads += [torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None]
            parts = hidden.new_zeros(3, dtype=torch.float32)
            rows = max(1, by_device(CHUNK_BYTES, hidden.device.type) // (4 * len(weight)))
            for start in range(0, len(hidden), rows):
                places = slice(start, start + rows)
                known = teacher.logits(places) if teacher else None
                sums, slope = chunk_loss(own.logits(places), targets[places], known, soft, slope=any(needed[:3]))
                parts += sums
                if slope is None:
                    continue
                if grads[2] is not None:
                    grads[2] += slope.sum(0)
                slope = slope.to(hidden.dtype)
                if grads[0] is not None:
                    grads[0][places] = fast_linear(slope, matrix.T)
                if grads[1] is not None:
                    grads[1] += fast_linear(slope.T, hidden[places].T)
            ctx.save_for_backward(*grads)
            ctx.kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
            total = parts[0].clone()
            term_sums = parts[1:].clone()
            ctx.mark_non_differentiable(term_sums)
        return total, term_sums

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):
        made = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return *(None if tensor is None else (tensor * grad).to(kind) for tensor, kind in made), None, None, None


def chunk_loss(
    logits: Float[Tensor, "place vocabulary"],
    targets: Int[Tensor, "place"],
    teacher: Float[Tensor, "place vocabulary"] | None,
    soft: Soft | None,
    *,
    slope: bool,
) -> tuple[Float[Tensor, "3"], Float[Tensor, "place vocabulary"] | None]:
    """Sums (loss, NLL, KL) of some places, and the loss's gradient by their logits if ``slope``.

    With q the student's and p the teacher's distribution at temperature T: d NLL / dz = q_1 - onehot, d (T² KL) / dz =
    T (q_T - p_T).
    """
    logs = logits.log_softmax(-1)
    wanted = targets[:, None]
    gradient = None
    nll = -logs.gather(1, wanted).sum()
    if slope:
        gradient = logs.exp_().scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=torch.float32))
    if teacher is None:
        return torch.stack([nll, nll, torch.zeros_like(nll)]), gradient
    warm, known = ((one / soft.temperature).log_softmax(-1) for one in (logits, teacher))
    if soft.top_k:
        top = known.topk(min(soft.top_k, known.shape[1]), dim=1)
        known = torch.full_like(known, -torch.inf).scatter_(1, top.indices, top.values.log_softmax(-1))
    share = known.exp()
    kl = soft.temperature**2 * torch.where(share > 0, share * (known - warm), 0.0).sum()
    if slope:
        gradient.mul_(soft.nll).add_(warm.exp_().sub_(share), alpha=soft.kl * soft.temperature)
    return torch.stack([soft.nll * nll + soft.kl * kl, nll, kl]), gradient


def loss_of(
    ends: Head | Float[Tensor, "kept vocabulary"],
    targets: Int[Tensor, "kept"],
    teacher: Head | Float[Tensor, "kept vocabulary"] | None,
    soft: Soft | None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "2"]]:
    """(loss, NLL and KL for telling) of what ``Objective.ends`` gives for a model and, where there is one, its
    teacher.
    """
    if isinstance(ends, Tensor):
        sums, _ = chunk_loss(ends, targets, teacher, soft, slope=False)
        return sums[0], sums[1:].detach()
    return ChunkedLoss.apply(*ends, targets, teacher, soft)


class Objective(nn.Module):
    """A model with its loss: tokens, positions and which tokens bear a loss -> (sum of their losses, sums of the
    terms).

    Here the loss is the NLL in nats, which is also the one term; ``distillation`` adds to it. Where the model is a
    decoder with a plain linear head (seen by comparing the two with the model's own logits once), the head is applied
    in chunks, else the model's logits are taken whole. Losses that balance experts are left out.
    """

    terms: tuple[str, ...] = ("nll",)

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
        loss_mask: Bool[Tensor, "row place"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "term"]]:
        """``loss_mask`` marks the tokens that are to be predicted; ``positions`` None counts from 0 in every row."""
        targets = tokens[:, 1:][loss_mask[:, 1:]]
        total, term_sums = loss_of(self.ends(tokens, positions, loss_mask), targets, None, None)
        return total, term_sums[:1]

    def ends(
        self,
        tokens: Int[Tensor, "row place"],
        positions: Int[Tensor, "row place"] | None,
        loss_mask: Bool[Tensor, "row place"],
    ) -> Head | Float[Tensor, "kept vocabulary"]:
        """What predicts the tokens that bear a loss.

        Hidden states with the head, or whole logits where there is no plain head.
        """
        given = {"input_ids": tokens, "use_cache": False} | ({} if positions is None else {"position_ids": positions})
        predicted = loss_mask[:, 1:]
        if not self.chunked:
            return self.model(**given).logits[:, :-1][predicted].float()
        decoder, head = self._parts[0]
        hidden = decoder(**given)[0][:, :-1][predicted]
        if torch.is_autocast_enabled(hidden.device.type):  # the last norm may have left it in fp32
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return Head(hidden, head.weight, head.bias)


class ActivationBytes(NamedTuple):
    """About what a forward pass leaves for the way back: once (weights cast to bf16), and for every sequence."""

    once: int
    each: int

    def of(self, sequences: int) -> int:
        return self.once + sequences * self.each

    def fitting(self, free: float) -> int:
        """The sequences that so many bytes have room for; at least one."""
        return max(1, int((free - self.once) / max(1, self.each)))


def activation_bytes(objective: "Objective", length: int, *, bf16: bool) -> ActivationBytes:
    """Activation memory of sequences of so many tokens, by two short ones: what grows with the tokens, and what does
    not.
    """
    sizes = [_left_bytes(objective, tokens, bf16=bf16) for tokens in SHORT]
    each = (sizes[1] - sizes[0]) / (SHORT[1] - SHORT[0])
    return ActivationBytes(max(0, int(sizes[0] - each * SHORT[0])), max(0, int(each * length)))


def _left_bytes(objective: "Objective", length: int, *, bf16: bool) -> int:
    own = {parameter.data_ptr() for parameter in objective.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = max(
                tensor.nbytes, seen.get(tensor.untyped_storage().data_ptr(), 0)
            )
            kept.append(tensor)  # so that no other one takes its place
        return tensor

    kept: list[Tensor] = []
    device = next(objective.parameters()).device
    tokens = torch.ones(1, length, dtype=torch.long, device=device)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), hooks:
        objective(tokens, None, torch.ones_like(tokens, dtype=torch.bool))
    return sum(seen.values())


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
                if (
                    got is not None
                    and got.shape == wanted.shape
                    and float((got - wanted).abs().max()) <= EXACT * float(wanted.abs().max())
                ):
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
@exact_products()
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
