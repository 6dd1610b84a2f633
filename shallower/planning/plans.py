"""Plan of a removal: its layers, and the parameters and bytes that go."""

from collections.abc import Sequence

from ..artifacts import CalibrationRecord, ModelRecord, Plan


def plan_of(
    record: ModelRecord,
    order: tuple[int, ...],
    selection: str,
    *,
    calibration: CalibrationRecord | None = None,
    trace: Sequence[float] = (),
) -> Plan:
    """The plan that removes these layers, with the parameters counted."""
    removed = sorted(order)
    return Plan(
        removed=removed,
        kept=[index for index in range(record.layers) if index not in order],
        order=list(order),
        params_before=record.parameters,
        params_after=record.parameters - sum(record.layer_parameters[index] for index in removed),
        bytes_before=record.weight_bytes,
        bytes_after=record.weight_bytes - sum(record.layer_bytes[index] for index in removed)
        if record.layer_bytes
        else 0,
        selection=selection,
        criterion=None,
        settings={},
        keep_first=0,
        keep_last=0,
        iterative=False,
        model=record,
        calibration=calibration,
        trace=list(trace),
    )
