"""Distillation loss of a student that learns from the dense model it came from.

Logits, hidden states, attention outputs, embeddings.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..anatomy.model import Model
from ..anatomy.modeling_shallower import lacks_attention
from ..anatomy.stack import dry_tokens
from ..errors import UserError, argument
from .objective import Objective, Soft, loss_of


@dataclass(frozen=True)
class Teaching:
    """What the student is drawn to; weights of zero leave a term out.

    Attributes:
        soft: the terms of the logits.
        hidden: mean square between the streams behind layers that both have, through a learned linear map per layer.
        attention: the same between the outputs of their attention (of the first part in which tokens meet), without a
            map.
        embedding: the same between the embedded tokens.
        relative: each mean square is divided by that of the teacher, so that layers of large activations do not drown
            the others.
    """

    soft: Soft
    hidden: float = 0.0
    attention: float = 0.0
    embedding: float = 0.0
    relative: bool = False


@dataclass(frozen=True)
class OutputTap:
    """The same place in both models.

    Which term it belongs to, the two modules, and what of their outputs is compared.
    """

    term: str
    label: str
    student: nn.Module
    teacher: nn.Module
    part: Callable[[Any], Tensor]  # -> (row, place, width)


class Distillation(Objective):
    """The objective of ``Teaching``; the teacher and its outputs have no gradients.

        loss = w_nll NLL + w_kl T² KL(p_T || q_T) + sum over terms of w_term mean over width (map(h) - h_teacher)²

    summed over the places whose next token bears a loss, and over layers. The maps are trained along and thrown away
    afterwards.
    """

    terms = ("nll", "kl", "hidden", "attention", "embedding")

    def __init__(self, student: Model, teacher: Model, teaching: Teaching):
        super().__init__(student.module)
        self.teaching = teaching
        self._teacher = [
            Objective(teacher.module.requires_grad_(False).eval())
        ]  # in a list: not trained, saved or sent on
        self._taps = taps(student, teacher, teaching)
        labels = [tap.label for tap in self._taps if tap.term == "hidden"]
        width = student.outline.width
        device = next(student.module.parameters()).device
        self.maps = nn.ParameterDict({label: nn.Parameter(torch.eye(width, device=device)) for label in labels})

    def forward(
        self, tokens: Tensor, positions: Tensor | None, loss_mask: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "term"]]:
        """As in ``Objective``, all of it outside training.

        The terms are the sums of NLL, KL, and the plain mean squares of the others.
        """
        if not self.training:
            return super().forward(tokens, positions, loss_mask)
        teacher = self._teacher[0]
        soft = self.teaching.soft
        with self._record_outputs("student") as ours:
            own = self.ends(tokens, positions, loss_mask)
        with torch.no_grad(), self._record_outputs("teacher") as theirs:
            known = teacher.ends(tokens, positions, loss_mask)
        total, term_sums = loss_of(own, tokens[:, 1:][loss_mask[:, 1:]], known, soft)
        squares = self._squares(ours, theirs, loss_mask[:, 1:])
        for name, value in squares.items():
            total = total + getattr(self.teaching, name) * value
        parts = [squares[name].detach() if name in squares else term_sums.new_zeros(()) for name in self.terms[2:]]
        return total, torch.cat([term_sums, torch.stack(parts)])

    @contextmanager
    def _record_outputs(self, side: str) -> Iterator[dict[str, Tensor]]:
        """label -> what the tapped modules of one side put out while inside, (row, place, width)."""
        outputs: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for tap in self._taps:

                def record(_, __, output, tap=tap) -> None:
                    outputs[tap.label] = tap.part(output)

                hooks.callback(getattr(tap, side).register_forward_hook(record).remove)
            yield outputs

    def _squares(self, ours: dict[str, Tensor], theirs: dict[str, Tensor], places: Tensor) -> dict[str, Tensor]:
        squares: dict[str, Tensor] = {}
        for tap in self._taps:
            own = ours[tap.label][:, :-1][places]
            known = theirs[tap.label][:, :-1][places].float()
            own = (
                own.float()
                if tap.label not in self.maps
                else (own.to(self.maps[tap.label].dtype) @ self.maps[tap.label].T).float()
            )
            square = (own - known).pow(2).mean(-1).sum()
            if self.teaching.relative:
                square = square / known.pow(2).mean().clamp(min=1e-12)
            squares[tap.term] = squares.get(tap.term, 0.0) + square
        return squares


def layer_pairs(student: Model, teacher: Model) -> list[int]:
    """The teacher's layer for each of the student's, by their places in the ancestor that both come from.

    Raises:
        UserError: the student has a layer that the teacher has not.
    """
    known = {layer: place for place, layer in enumerate(teacher.record.original)}
    if missing := [layer for layer in student.record.original if layer not in known]:
        raise UserError(
            f"layer {missing[0]} of the dense model is in {student.checkpoint.source} and not in "
            f"{teacher.checkpoint.source} "
            f"({len(known)} layers): give the model that it was pruned from"
        )
    return [known[layer] for layer in student.record.original]


def taps(student: Model, teacher: Model, teaching: Teaching) -> list[OutputTap]:
    """Where both are compared.

    Raises:
        UserError: attention outputs are wanted, and a layer shows no attention.
    """
    output_taps = []
    if teaching.embedding:
        ends = (model.module.get_input_embeddings() for model in (student, teacher))
        output_taps.append(OutputTap("embedding", "embedding", *ends, lambda output: output))
    if teaching.hidden or teaching.attention:
        stacks = [model.module.get_submodule(model.outline.name) for model in (student, teacher)]
        names = attention_names(student) if teaching.attention else []
        first = student.outline.tokens_first
        for place, other in enumerate(layer_pairs(student, teacher)):
            layers = stacks[0][place], stacks[1][other]
            if teaching.hidden:
                stream = student.outline.interfaces[place].stream_out
                output_taps.append(
                    OutputTap("hidden", f"hidden{place}", *layers, lambda output, stream=stream: first(stream(output)))
                )
            if teaching.attention and names[place]:
                within = (layer.get_submodule(names[place]) for layer in layers)
                output_taps.append(
                    OutputTap("attention", f"attention{place}", *within, lambda output: first(_first(output)))
                )
    return output_taps


def _first(output: Any) -> Tensor | None:
    tensors = output if isinstance(output, tuple | list) else (output,)
    return next((one for one in tensors if isinstance(one, Tensor) and one.is_floating_point()), None)


@torch.no_grad()
def attention_names(model: Model) -> list[str]:
    """Of every layer, the name within it of its attention, or of what stands in its place: the first part in which
    tokens meet. Empty for a layer of which the attention was removed.

    That is seen by behaviour: noise on the last token but one of what goes in shows at the last one of what comes out.
    """
    tokens = dry_tokens(model.vocabulary).to(next(model.module.parameters()).device)
    layers = model.module.get_submodule(model.outline.name)
    calls: dict[int, dict[str, tuple]] = {}
    with ExitStack() as hooks:
        for place, layer in enumerate(layers):
            for name, part in layer.named_modules():
                if name:
                    see = partial(_note_call, calls.setdefault(place, {}), name)
                    hooks.callback(part.register_forward_hook(see, with_kwargs=True).remove)
        model.module.eval()(input_ids=tokens, use_cache=False)
    outline = model.outline
    names = []
    sizes = {outline.batch_axis: tokens.shape[0], outline.position_axis: tokens.shape[1], -1: outline.width}
    for place, seen in calls.items():
        attention = next(
            (name for name, call in seen.items() if _mixes(layers[place].get_submodule(name), call, sizes)), None
        )
        if attention is None and not lacks_attention(layers[place]):
            raise UserError(
                f"distill: nothing in layer {place} is seen to let tokens meet; "
                f"{argument('settings', {'attention': 0})} goes without"
            )
        names.append(attention or "")
    return names


def _note_call(calls: dict[str, tuple], name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    calls[name] = (args, kwargs, output)


def _mixes(part: nn.Module, call: tuple, sizes: dict[int, int]) -> bool:
    """``sizes``: of the axes of the stream, those of batch, position and width, in this order."""
    args, kwargs, output = call
    tensor = _first(output)
    axis = list(sizes)[1]
    if tensor is None or tensor.dim() <= axis or any(tensor.shape[at] != size for at, size in sizes.items()):
        return False

    def noisy(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != tensor.shape or not value.is_floating_point():
            return value
        value = value.clone()
        value.select(axis, -2).add_(torch.randn_like(value.select(axis, -2)) * value.float().std())
        return value

    inputs = [noisy(value) for value in args], {name: noisy(value) for name, value in kwargs.items()}
    if all(new is old for new, old in zip((*inputs[0], *inputs[1].values()), (*args, *kwargs.values()), strict=True)):
        return False
    last = [_first(one).select(axis, -1) for one in (part(*inputs[0], **inputs[1]), output)]
    return not torch.equal(*last)


def share_weights(student: Model, teacher: Model) -> int:
    """Let the teacher use the student's weights where they are frozen and equal; returns how many parameters that are.

    Frozen weights stay what they are until training ends, so that one copy in memory serves both.
    """
    outlines = student.outline.name, teacher.outline.name
    at = dict(enumerate(layer_pairs(student, teacher)))
    known = dict(teacher.module.named_parameters())
    count = 0
    for name, parameter in student.module.named_parameters():
        if parameter.requires_grad:
            continue
        name = name.replace(".base_layer.", ".")  # where an adapter was put around it
        if name.startswith(f"{outlines[0]}."):
            place, _, rest = name.removeprefix(f"{outlines[0]}.").partition(".")
            name = f"{outlines[1]}.{at[int(place)]}.{rest}"
        other = known.get(name)
        if (
            other is not None
            and other.shape == parameter.shape
            and other.dtype == parameter.dtype
            and torch.equal(other, parameter)
        ):
            other.data = parameter.data
            count += parameter.numel()
    return count
