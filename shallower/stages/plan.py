"""Plans: which layers go, from scores, from a search by the model's loss, or as they are named."""

from pathlib import Path
from types import ModuleType
from typing import Any

from .. import methods
from ..anatomy.model import Model
from ..anatomy.quantised import check_rewritable
from ..artifacts import Plan, Scores
from ..artifacts.units import LAYER, LAYER_WIDTH, NARROW, check_units_kind
from ..data.readers import check_readable
from ..errors import UserError, argument
from ..planning.choice import searches
from ..planning.exchange import named_units, plan_place
from ..planning.plans import plan_of
from ..runtime import distributed
from ..runtime.progress import say
from ..settings.amount import Amount, amount_of
from ..settings.calibration import Calibration, Paths, calibration_of, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..storage.journal import journaled
from ..walk.scoring import DATA
from .choosing import choose_plan
from .common import ModelSource, open_model, resolve_settings, save_plan, units_named
from .depth_and_width import plan_depth_and_width
from .evidence import Evidence
from .score import scores_of
from .selection_options import REPAIRED, SelectionOptions, default_criterion


def plan(
    source: ModelSource | Scores,
    *,
    amount: Amount | int | float | str | None = None,
    choosing: SelectionOptions | str | None = None,
    criterion: str | None = None,
    settings: dict[str, Any] | None = None,
    units: str | None = None,
    calibration: Calibration | None = None,
    texts: Paths = (),
    protocol: Protocol | None = None,
    compute: Compute | None = None,
    out: str | Path | None = None,
    **plain: Any,
) -> Plan:
    """Decide which layers go, or which attentions and MLPs.

    Example: ``shallower.plan("my-model", ratio="20%", selection="greedy")``, ``shallower.plan(scores, remove=6)``.

    Args:
        source: scores (a Scores or the path of a scores.json), or a model, which is scored first where needed.
        amount: how much goes: an Amount, a number of layers or a share; or its fields as keywords.
        choosing: how; by default the run of neighbours that block influence finds, with automatic protection.
        criterion, settings, units, calibration, compute: as for ``score``, where a model is given; with scores they
            have nothing to say.
        texts, protocol: what ``max_ppl_increase`` is measured on, as for ``evaluate``.
    """
    scores = scores_of(source)
    if scores is not None:
        _check_unsettled(scores, criterion, {"units": units, "calibration": calibration, "compute": compute}, plain)
    if isinstance(choosing, str):
        choosing = SelectionOptions(choosing)
    if amount is not None:
        amount = amount_of(amount)
    kinds = {
        "choosing": (SelectionOptions, choosing),
        "calibration": (Calibration, calibration_of(calibration)),
        "compute": (Compute, compute),
    }
    amount, choosing, calibration, compute = resolve_settings(plain, "plan", amount=(Amount, amount), **kinds)
    inputs = [*calibration.files, *listed_paths(texts), source if isinstance(source, (str, Path)) else None]
    out = plan_place(out, inputs)
    check_readable(calibration.texts)
    check_readable(listed_paths(texts), "texts")
    kind = scores.kind_of_units if scores is not None else units or LAYER
    check_units_kind(kind)
    methods.check_name("criteria", criterion or default_criterion(kind))
    choosing = choosing.for_criterion(scores.criterion if scores is not None else criterion, kind)
    _check_choosing(choosing, amount, kind, scores)
    _check_refit(choosing, criterion or default_criterion(kind))
    model = None if scores else _opened(source, compute, choosing)
    how = {"repaired": choosing.objective == REPAIRED, "refit": choosing.refit}
    evidence = Evidence(model, scores, criterion, settings, kind, calibration, texts, protocol, **how)
    if amount.max_ppl_increase is not None:
        _ = evidence.segments  # wrong ones are refused before anything is scored
    with journaled(out):
        choose = plan_depth_and_width if kind == LAYER_WIDTH else choose_plan
        chosen = choose(evidence, choosing, amount)
        _say_missed(chosen, amount)
        return save_plan(chosen, out)


def _opened(source: ModelSource, compute: Compute, choosing: SelectionOptions) -> Model:
    """The model, refused where candidates are to be repaired and its weights cannot be."""
    model = open_model(source, compute)
    changed = choosing.objective == REPAIRED or choosing.refit is not None
    check_rewritable(model.checkpoint.source, model.checkpoint.quantised, repaired=changed, converted=False)
    return model


def _check_choosing(choosing: SelectionOptions, amount: Amount, kind: str, scores: Scores | None) -> None:
    """Raise a UserError for a selection that does not go with what is asked of it."""
    selection = methods.find("selection", choosing.selection)
    check_schedule(selection, choosing)
    _check_objective(selection, choosing, kind, scores)
    check_selects(choosing.selection, kind)
    _check_narrowing(choosing, amount, kind)
    _check_runs(selection, choosing, amount, scores)


def _say_missed(chosen: Plan, amount: Amount) -> None:
    """Say by how much a target of parameters is missed, as a multiple of neurons may have it."""
    if amount.target_params is not None and chosen.params_after > amount.target_params:
        more = chosen.params_after / amount.target_params - 1
        say(f"{amount.name} is missed by {more:.2%}: {chosen.params_after:,} parameters stay")


def _check_unsettled(scores: Scores, criterion: str | None, settles: dict[str, Any], plain: dict[str, Any]) -> None:
    """Raise a UserError for what scores that were given have settled already."""
    settles |= {
        name: plain[name]
        for name in plain
        if name in (*Calibration.__dataclass_fields__, *Compute.__dataclass_fields__)
    }
    given = next((name for name, value in settles.items() if value is not None), None)
    if criterion is not None and criterion != scores.criterion:
        raise UserError(
            f"these scores are by {scores.criterion}; give MODEL, or score it by {criterion} first",
            criterion=criterion,
        )
    if given is not None:
        raise UserError(
            f"{argument(given)} says how a model is scored, and scores were given: give MODEL, or leave it out"
        )


def check_schedule(selection: ModuleType, choosing: SelectionOptions) -> None:
    """Raise a UserError for a schedule or a budget that the selection has no use for."""
    if choosing.iterative and not getattr(selection, "ITERATIVE", False):
        able = [
            name for name in methods.names("selection") if getattr(methods.find("selection", name), "ITERATIVE", False)
        ]
        raise UserError(
            f"{argument('iterative', True)} has no meaning for {argument('selection', choosing.selection)}; it goes "
            f"with {', '.join(able)}"
        )
    if choosing.budget is not None and not searches(selection):
        able = [name for name in methods.names("selection") if searches(methods.find("selection", name))]
        raise UserError(
            f"{argument('budget')} has no meaning for {argument('selection', choosing.selection)}; it goes with "
            f"{', '.join(able)}"
        )


def _check_refit(choosing: SelectionOptions, criterion: str) -> None:
    """Raise a UserError for a repair between the removals that has no meaning or changes nothing."""
    if choosing.refit is None:
        return
    given = argument("refit", choosing.refit)
    known = {name: methods.find("compensation", name) for name in methods.names("compensation")}
    able = [name for name, method in known.items() if not getattr(method, "ADDS_BIASES", False)]
    if choosing.refit not in able:
        raise UserError(f"{given} repairs narrower layers only; between removals go {', '.join(able)}")
    if not choosing.iterative:
        raise UserError(f"{given} repairs between removals, one by one: add {argument('iterative', True)}")
    if methods.find("criteria", criterion).EVIDENCE not in DATA:
        raise UserError(f"{given} changes nothing that {criterion} is about: choose a criterion that runs the model")
    if distributed.size() > 1:
        raise UserError(f"{given} runs in one process: start it without torchrun")


def _check_objective(selection: ModuleType, choosing: SelectionOptions, kind: str, scores: Scores | None) -> None:
    """Raise a UserError where a choice for the repaired model is asked for and nothing can be repaired for it."""
    if choosing.objective != REPAIRED:
        return
    given = argument("objective", REPAIRED)
    known = {name: methods.find("selection", name) for name in methods.names("selection")}
    able = [name for name, one in known.items() if one.NEEDS == "losses" or getattr(one, "LOSSES", False)]
    if choosing.selection not in able or choosing.iterative:
        what = argument("iterative", True) if choosing.iterative else argument("selection", choosing.selection)
        raise UserError(f"{given} does not go with {what}; it goes with {argument('selection')} {', '.join(able)}")
    if kind in NARROW or kind == LAYER_WIDTH:
        raise UserError(f"{given} does not go with {argument('units', kind)}: it goes with layers and parts of them")
    if scores is not None:
        raise UserError(f"{given} needs the model: give MODEL instead of scores")


def check_selects(selection: str, kind: str) -> None:
    """Raise a UserError where a selection knows whole layers only and parts of layers are to go."""
    known = {name: methods.find("selection", name) for name in methods.names("selection")}
    groups = {name: getattr(method, "GROUPS", "never") for name, method in known.items()}
    wrong = "never" if kind in NARROW else "only"
    if groups[selection] == wrong:
        able = [name for name, what in groups.items() if what != wrong]
        raise UserError(
            f"{argument('selection', selection)} does not go with {argument('units', kind)}; with it go "
            f"{', '.join(able)}"
        )
    if kind != LAYER and getattr(known[selection], "WHOLE_LAYERS", False):
        able = [name for name, method in known.items() if not getattr(method, "WHOLE_LAYERS", False)]
        raise UserError(
            f"{argument('selection', selection)} chooses among whole layers; with {argument('units', kind)} go "
            f"{', '.join(able)}"
        )


def _check_narrowing(choosing: SelectionOptions, amount: Amount, kind: str) -> None:
    """Raise a UserError for what has no meaning where groups of parts go, or only there."""
    if kind not in NARROW:
        return
    if choosing.iterative:
        raise UserError(f"{argument('iterative', True)} has no meaning for {argument('units', kind)}")
    if amount.max_ppl_increase is not None:
        raise UserError(
            f"{argument('max_ppl_increase')} counts units one by one; with {argument('units', kind)} give "
            f"{argument('ratio')} or {argument('target_params')}"
        )


def _check_runs(selection: ModuleType, choosing: SelectionOptions, amount: Amount, scores: Scores | None) -> None:
    """Raise a UserError for what runs the model where only scores were given."""
    if scores is None:
        return
    if selection.NEEDS == "losses" or choosing.iterative:
        given = argument("iterative", True) if choosing.iterative else argument("selection", choosing.selection)
        raise UserError(f"{given} runs the model: give MODEL instead of scores")
    if amount.max_ppl_increase is not None:
        raise UserError(f"{argument('max_ppl_increase')} runs the model: give MODEL instead of scores")


def drop(
    model: ModelSource, layers: Any, *, compute: Compute | None = None, out: str | Path | None = None, **plain: Any
) -> Plan:
    """A plan that removes exactly these layers, or parts of layers; no protection.

    Example: ``shallower.drop("my-model", [3, 4, 5])``, ``shallower.drop("my-model", "3-5, 9.mlp, 12.attention")``.

    Args:
        layers: numbers and names, or a list of another tool, such as ``"block_order.csv:6"`` (see
            ``planning.exchange``).
    """
    names = named_units(layers)
    out = plan_place(out)
    (compute,) = resolve_settings(plain, "drop", compute=(Compute, compute))
    model = open_model(model, compute)
    units, numbers = units_named(model, names, "layers")
    record = model.record
    if not numbers or len(units.removal(numbers).layers) == record.layers:
        raise UserError(
            f"{argument('layers')} names {len(names)} of {record.layers} layers; at least one must go and one must stay"
        )
    return save_plan(plan_of(record, numbers, "drop", units=units), out)
