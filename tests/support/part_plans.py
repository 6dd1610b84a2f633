"""Plans that remove parts of layers, by hand."""

import math
from collections.abc import Iterable

from shallower.anatomy.model import Model
from shallower.artifacts import Plan, Removal
from shallower.artifacts.removal import Unit, parameters_gone


def unit_parameters(model: Model, unit: Unit) -> int:
    """Parameters that go with a unit, counted on the shapes of its layer."""
    if not unit.part:
        return model.record.layer_parameters[unit.layer]
    layer = model.checkpoint.shapes.get_submodule(f"{model.outline.name}.{unit.layer}")
    names = model.parts[unit.layer].parts[unit.part].parameters
    return sum(math.prod(layer.get_parameter(name).shape) for name in names)


def part_plan(model: Model, units: Iterable[str], layers: Iterable[int] = ()) -> Plan:
    """The plan without these units, such as `5.mlp`, and these layers."""
    removal = Removal.told(layers, units).folded([tuple(one.parts) for one in model.parts])
    record, removed = model.record, list(removal.layers)
    units = {str(unit): unit_parameters(model, unit) for unit in removal.units} if removal.kind == "part" else {}
    return Plan(
        removed=removed,
        kept=removal.stays(record.layers),
        order=removed,
        params_before=record.parameters,
        params_after=record.parameters - parameters_gone(units, removed, record.layer_parameters),
        selection="drop",
        criterion=None,
        settings={},
        keep_first=0,
        keep_last=0,
        iterative=False,
        model=record,
        calibration=None,
        units=units,
    )
