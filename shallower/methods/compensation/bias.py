"""Bias: what removed groups brought to their last product on the mean is given back by its bias.

    b ← b + W_out ( E[X] ∘ gone )       with X what enters the product in the dense model, on the fitting tokens

Where that is constant, the output is the dense one. A product without a bias gets one; in a plain checkpoint all
layers get it, and zeros where it is not used. It is taken only if the loss on held-out tokens falls.

Source: FLAP (arXiv 2312.11983), baseline bias compensation; with means of the dense model, as there.
"""

import torch

from ...anatomy.patch import Edit
from ...errors import Refusal
from ...repair.case import Case, Fitted, best_of

ADDS_BIASES = True


def fit(case: Case) -> Fitted:
    walk = case.walk()
    for step in walk:
        lost = case.removal.groups(step.index)
        for part, mean in (step.mean_inputs() if lost else {}).items():
            groups = case.model.grouped[step.index].groups[part]
            gone = 1 - groups.mask(lost[part]).to(mean)
            layer = case.model.layer(step.index)
            change = (groups.matrix(layer).double() @ (mean * gone)).float()
            bias = f"{groups.module}.bias"
            product = layer.get_submodule(groups.module)
            kind = "add" if isinstance(getattr(product, "bias", None), torch.Tensor) else "new"
            step.take({step.name(bias): Edit(kind, change)})
            step.note(part=part, shift=float(change.norm()))
    if not walk.notes:
        raise Refusal("no group of a part goes, so nothing is missing that a bias could give: use sequential")
    patch, _, chosen, tried = best_of(case, ({}, None), [("bias", walk.patch)])
    return Fitted(patch, {"steps": walk.notes, "taken": chosen is not None, "tried": tried})
