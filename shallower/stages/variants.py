"""Variants of one model, for a page or a talk about it: what plans leave out of it, step by step, and what folders that
were made from it hold; weights that both have in common exist once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from ..anatomy.model import RESIDENT_SHARE, SIDE_FILE, Model
from ..anatomy.quantised import refuse
from ..anatomy.stack import dry_tokens
from ..artifacts import NOTHING, Plan, Removal, load
from ..errors import UserError, argument
from ..evaluation.side_by_side import PROBE, Variant, alike, of_patch
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..settings.amount import Amount
from ..settings.calibration import Calibration
from ..settings.compute import Compute
from ..storage.paths import kind_of, place
from .common import check_plan_units, units_named
from .lineage import dense_model
from .plan import plan as make_plan
from .repair import fit_repair
from .repair_options import RepairOptions
from .selection_options import SelectionOptions

REPAIR = "sequential"
NARROWED = "25%"  # of the parameters, where scores are of groups
WIDTH = ":"  # in the name of a group
SAMPLES = 64  # of a repair that is made while somebody waits
GIVE = "give plan.json files, a scores.json, or folders that were made from the model"


@dataclass(eq=False)
class Offer:
    """One way to make a model smaller: a plan, whose removals are nested, or a folder.

    Attributes:
        name: short, for people.
        removals: the first leaves nothing out, the last all that the plan names; one alone for a folder.
        gone: parameters that go with each.
        variant: of a folder.
        repaired: what repairs have made so far, the last only; place in the removals -> variant.
    """

    name: str
    plan: Plan
    removals: list[Removal]
    gone: list[int]
    variant: Variant | None = None
    repaired: dict[int, Variant] = field(default_factory=dict)

    def at(self, index: int, *, repaired: bool) -> Variant:
        """The variant with so much left out; a folder's whatever is asked."""
        if self.variant is not None:
            return self.variant
        return self.repaired[index] if repaired else Variant(self.removals[index])

    def repair(self, model: Model, index: int) -> None:
        """Repair what such a removal leaves, in closed form; earlier repairs of the plan are given up.

        Raises:
            UserError: it cannot be repaired.
        """
        if index in self.repaired:
            return
        self.repaired.clear()
        removal = self.removals[index]
        how = RepairOptions(REPAIR, calibration=Calibration(samples=SAMPLES, at_most=True))
        self.repaired[index] = of_patch(model, removal, fit_repair(model, removal, how)[0]) if removal else Variant()


def open_for_variants(source: str, given: Sequence[str], compute: Compute) -> tuple[Model, list[str]]:
    """(the unpruned model, what was made from it): a folder that was pruned, given alone, brings its own.

    Raises:
        UserError: it does not fit into memory, or is quantised.
    """
    model = Model(source, **vars(replace(compute, layered=False)))
    given = [*given]
    if not given and (model.checkpoint.folder / SIDE_FILE).is_file():
        try:
            model, given = dense_model(model, "", compute, compute.dtype), [source]
        except UserError as error:
            raise UserError(
                f"{source}: the model that it was pruned from is not found here: give that one first, and this one "
                "behind it"
            ) from error
    why = "side by side stand plain weights: give the unquantised model"
    refuse(model.checkpoint.source, model.checkpoint.quantised, why)
    check_memory(model, [])
    return model, given


def check_memory(model: Model, folders: Sequence[Model], held: int = 0) -> None:
    """Raise a UserError unless a model fits into memory whole, with what folders may hold beside it; loads nothing.

    Args:
        held: bytes of weights that variants hold already.
    """
    sizes = [_bytes(one, model.dtype) for one in (model, *folders)]
    total = total_memory(model.device)
    if sum(sizes) + held <= RESIDENT_SHARE * total:
        return
    more = sum(sizes[1:]) + held
    beside = f", and up to {more / 1e9:.1f} GB for what differs in the folders" if more else ""
    ways = ["give plans instead of folders, which need no weights of their own"] if more else []
    half = _bytes(model, torch.bfloat16)
    ways += [f"try {argument('dtype', 'bf16')}, which takes {half / 1e9:.1f} GB"] if half < sizes[0] else []
    raise UserError(
        f"{model.checkpoint.source} needs {sizes[0] / 1e9:.1f} GB of memory{beside}; {RESIDENT_SHARE:.0%} of "
        f"{total / 1e9:.1f} GB may be taken: {' or '.join(ways) or 'it takes a larger machine'}"
    )


def _bytes(model: Model, dtype: torch.dtype | None) -> int:
    """Bytes of the weights in memory."""
    if dtype is None:
        return model.checkpoint.loaded_bytes(None)
    return dtype.itemsize * sum(entry.count for entry in model.checkpoint.tensors.values())


def offers(model: Model, given: Sequence[str]) -> list[Offer]:
    """What plans, scores and folders offer; where none are given, half of the layers by block influence.

    Raises:
        UserError: a file that is none of these, or is of another model, or a folder whose weights have other names or
            shapes than the model's.
    """
    if not given:
        say("no plan given: the layers by block influence, up to half of them")
        return [_of_plan(model, make_plan(model, amount=_half(model), choosing=SelectionOptions("lowest")), "planned")]
    found: list[Offer] = []
    for one in given:
        held = sum(offer.variant.bytes for offer in found if offer.variant is not None)
        found.append(_offer(model, place(one), held))
    names = [one.name for one in found]
    for index, one in enumerate(found):
        if names.count(one.name) > 1:
            one.name = f"{one.name} ({index + 1})"
    return found


def _half(model: Model) -> Amount:
    return Amount(remove=max(1, model.record.layers // 2))


def _offer(model: Model, path: Path, held: int) -> Offer:
    if path.is_dir():
        return _of_folder(model, path, held)
    kind = kind_of(path)
    if kind == "plan":
        plan = load(path, "plan")
    elif kind == "scores":
        scores = load(path, "scores")
        amount = Amount(ratio=NARROWED) if scores.units and WIDTH in scores.units[0] else _half(model)
        plan = make_plan(scores, amount=amount, choosing=SelectionOptions("lowest"))
    else:
        raise UserError(f"{path} is {f'an artifact of the kind {kind}' if kind else 'no artifact of ours'}: {GIVE}")
    return _of_plan(model, plan, path.stem)


def _check_same(model: Model, plan: Plan, path: str) -> None:
    if plan.model.fingerprint != model.record.fingerprint:
        raise UserError(
            f"{path} belongs to {plan.model.source}, which is another model than {model.checkpoint.source}: give what "
            "was made from this one"
        )


def _of_plan(model: Model, plan: Plan, name: str) -> Offer:
    _check_same(model, plan, name)
    check_plan_units(plan, model)
    names = [*plan.units] or [str(index) for index in plan.order]
    sizes = plan.units or {str(index): plan.model.layer_parameters[index] for index in plan.order}
    removals, gone = [NOTHING], [0]
    for count in range(1, len(names) + 1):
        units, numbers = units_named(model, names[:count], "plan")
        removals.append(units.removal(numbers))
        gone.append(gone[-1] + sizes[names[count - 1]])
    return Offer(name, plan, removals, gone)


def _of_folder(model: Model, path: Path, held: int) -> Offer:
    if not (path / SIDE_FILE).is_file():
        raise UserError(f"{path} has no {SIDE_FILE}, so nothing says what it was made from: {GIVE}")
    plan = load(path / SIDE_FILE, "pruned").plan
    _check_same(model, plan, str(path))
    check_plan_units(plan, model)
    small = Model(path, dtype=model.module.dtype, device=model.device, layered=True)
    why = "side by side stand plain weights: give the folder before it was quantised"
    refuse(small.checkpoint.source, small.checkpoint.quantised, why)
    check_memory(model, [small], held)
    try:
        weights = _differences(model, small, plan)
        _check_alike(model, small, Variant(plan.removal, weights))
    finally:
        small.unload()
    say(f"{path}: {len(weights)} weights of its own, {sum(one.nbytes for one in weights.values()) / 1e6:.0f} MB")
    gone = plan.params_before - plan.params_after
    return Offer(path.name, plan, [plan.removal], [gone], Variant(plan.removal, weights))


def _differences(model: Model, small: Model, plan: Plan) -> dict[str, torch.Tensor]:
    """Weights of a folder's model that are not the unpruned one's, by the unpruned names; one layer at a time is in
    memory.
    """
    weights: dict[str, torch.Tensor] = {}
    within, there = f"{model.outline.name}.", f"{small.outline.name}."
    dense = dict(model.module.named_parameters(remove_duplicate=False))

    def take(name: str, parameter: nn.Parameter, own: str) -> None:
        before = dense.get(name)
        if before is None or before.shape != parameter.shape:
            known = f"has it as {[*before.shape]}" if before is not None else "lacks it"
            raise UserError(
                f"{small.checkpoint.source} is of another form: {own} is {[*parameter.shape]} there, and the unpruned "
                f"model {known}; give its plan instead"
            )
        if not torch.equal(before.data, parameter.data):
            weights[name] = parameter.data.clone()

    try:
        outside = small.module
    except UserError as error:  # of reading layer by layer, which is not what was asked for
        raise UserError(f"{small.checkpoint.source} cannot be read layer by layer: give its plan instead") from error
    for name, parameter in outside.named_parameters():
        if not name.startswith(there):
            take(name, parameter, name)
    for index, original in enumerate(plan.kept):
        for name, parameter in small.layer(index).named_parameters():
            take(f"{within}{original}.{name}", parameter, f"{there}{index}.{name}")
    return weights


@torch.no_grad()
def _check_alike(model: Model, small: Model, variant: Variant) -> None:
    """Raise a UserError unless the variant computes what the folder's own model does: its config, its buffers or what
    it ties may differ as well.
    """
    tokens = dry_tokens(model.vocabulary, 1, PROBE).to(model.device)
    own = small.module(input_ids=tokens).logits.float()
    with variant.within(model):
        within = model.module(input_ids=tokens).logits.float()
    if own.shape != within.shape or not bool((own - within).abs().mean() <= alike(model.module.dtype) * own.std()):
        raise UserError(
            f"{small.checkpoint.source} computes otherwise than the unpruned model does with its weights (its config, "
            "its buffers or what it ties differ): give its plan instead"
        )
