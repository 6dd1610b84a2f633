"""Repair of a .gguf file: found on its unpacked weights, written in the form that the file has."""

from typing import NamedTuple

from ..anatomy.model import Model
from ..artifacts import Plan, RepairReport
from ..storage.gguf import read_gguf
from ..storage.paths import place
from ..surgery.gguf_repair import GgufRepair, remade_tensors
from .repair import fit_repair
from .repair_options import RepairOptions


class RepairedGguf(NamedTuple):
    """Tensors that a repair has made anew, and how it was found."""

    tensors: GgufRepair
    report: RepairReport


def repair_gguf(model: Model, plan: Plan, how: RepairOptions) -> RepairedGguf:
    """The repair of what is left of a .gguf file.

    Args:
        model: the file, opened.
    Raises:
        UserError: as by the compensation, or a changed weight has no counterpart in the file.
    """
    patch, report = fit_repair(model, plan.removal, how)
    header = read_gguf(place(model.checkpoint.source))
    return RepairedGguf(remade_tensors(header, model, patch), report.brief())
