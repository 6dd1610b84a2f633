"""Plan of a removal: its units, and the parameters and bytes that go."""

from collections.abc import Sequence

from ..artifacts import CalibrationRecord, ModelRecord, Plan, Units
from ..artifacts.removal import listed
from ..errors import UserError


def plan_of(
    record: ModelRecord,
    order: Sequence[int],
    selection: str,
    *,
    units: Units | None = None,
    calibration: CalibrationRecord | None = None,
    trace: Sequence[float] = (),
) -> Plan:
    """The plan that removes these layers or units, with the parameters counted.

    Args:
        order: their numbers, in the order of removal.
        units: what the numbers are of; by default layers.
    """
    units = units or Units.of_layers(record.layer_parameters)
    removal = units.removal(order)
    gone = units.parameters(order)
    sizes = units.sizes(order)
    return Plan(
        removed=listed(removal),
        kept=removal.stays(record.layers),
        order=list(removal.layers) if sizes else list(order),
        params_before=record.parameters,
        params_after=record.parameters - gone,
        bytes_before=record.weight_bytes,
        bytes_after=record.weight_bytes - _bytes(record, units, order) if record.layer_bytes else 0,
        selection=selection,
        criterion=None,
        settings={},
        keep_first=0,
        keep_last=0,
        iterative=False,
        model=record,
        calibration=calibration,
        trace=list(trace),
        units=sizes,
    )


def _bytes(record: ModelRecord, units: Units, order: Sequence[int]) -> int:
    """Stored bytes that go; those of a part are its share of the layer's."""
    gone = units.removal(order).layers
    total = float(sum(record.layer_bytes[index] for index in gone))
    for one in (units.listing[number] for number in order):
        index = one.unit.layer
        if index not in gone:
            total += record.layer_bytes[index] * one.parameters / record.layer_parameters[index]
    return round(total)


def check_same_model(one: ModelRecord, other: ModelRecord, what: str) -> None:
    """Raise a UserError unless both records are of the same weights."""
    if one.fingerprint != other.fingerprint or one.layers != other.layers:
        raise UserError(
            f"{what} was made for another model ({one.source}, {one.layers} layers, fingerprint {one.fingerprint}) "
            f"than {other.source} ({other.layers} layers, fingerprint {other.fingerprint}): make one for this model"
        )
