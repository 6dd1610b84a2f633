"""Repair of what is left after a removal, without a gradient through the model."""

from .. import methods
from ..anatomy.model import Model
from ..anatomy.patch import Patch
from ..artifacts import Compensation, Removal
from ..repair.fit import fit_compensation
from .repair_options import RepairOptions


def fit_repair(model: Model, removal: Removal, how: RepairOptions) -> tuple[Patch, Compensation]:
    """Changes of weights that repair the model after a removal, and the record of how they were found.

    See ``fit_compensation``.
    """
    method = methods.find("compensation", how.method)
    return fit_compensation(model, removal, method, methods.configure(method, how.settings), how.calibration)
