"""Optimisers for training: AdamW, and Muon, whose momentum matrices are made orthogonal.

Muon: Jordan and others 2024, kellerjordan.github.io/posts/muon.

On the codec it reached 20 dB in the time in which AdamW reached 15.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def orthogonalise(matrices: torch.Tensor, num_iterations: int = 5) -> torch.Tensor:
    """Drive the singular values of ``[N, rows, columns]`` to about 1 by Newton-Schulz iteration, in bfloat16."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over weights of two or more dimensions, read as ``[outputs, inputs x kernel]``.

    Weights of equal shape are orthogonalised together, in one batched product.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight once; ``closure`` is not supported."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append((parameter, parameter.grad))
            for shape, members in alike.items():
                updates = []
                for parameter, gradient in members:
                    state = self.state[parameter]
                    average = state.setdefault("momentum", torch.zeros_like(parameter))
                    average.lerp_(gradient, 1.0 - group["momentum"])
                    updates.append(gradient.lerp(average, group["momentum"]).flatten(1))
                stacked = orthogonalise(torch.stack(updates))
                scale = max(1.0, stacked.shape[1] / stacked.shape[2]) ** 0.5
                for (parameter, _), update in zip(members, stacked, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(shape), alpha=-group["lr"] * scale)


def make_optimisers(
    module: nn.Module, learning_rate: float, matrix_learning_rate: float | None, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and AdamW for the rest if ``matrix_learning_rate`` is given."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices: list[nn.Parameter] = []
    if matrix_learning_rate is not None:
        matrices = [p for p in parameters if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and p.shape[0] > 1]
    ids = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in parameters if id(parameter) not in ids]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    ]
    if matrices and matrix_learning_rate is not None:
        optimisers.append(Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
    return optimisers
