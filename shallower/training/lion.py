"""Lion optimiser: the sign of an interpolated momentum, decoupled weight decay (arXiv 2302.06675)."""

from collections.abc import Iterable

import torch


class Lion(torch.optim.Optimizer):
    """w -= lr (sign(b1 m + (1 - b1) g) + decay w), then m = b2 m + (1 - b2) g."""

    def __init__(
        self, params: Iterable, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum.lerp(parameter.grad, 1 - first).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)
