"""The loss that a codec is trained by, and the start of its training."""

from __future__ import annotations

import torch
from torch import nn


def narrow_posterior(last: nn.Module, num_channels: int) -> None:
    """Let the posterior start narrow: from unit variance its noise drowns the colours for the first thousand steps.

    Args:
        last: convolution that gives ``num_channels`` means, then as many logarithms of variances.
        num_channels: of the latents.
    """
    weight, bias = last.weight, last.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    with torch.no_grad():
        weight[num_channels:] *= 0.1
        bias[num_channels:] = -6.0


def reconstruction_loss(
    output: torch.Tensor,
    wanted: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    *,
    edge_weight: float,
    kl_weight: float = 1e-4,
    square_weight: float = 1.0,
) -> torch.Tensor:
    """Squared and absolute error, a term on differences that keeps edges and textures sharp, a very small KL term.

    Args:
        output, wanted: ``[B, 3, (F,) H, W]`` in -1..1.
        mean, log_variance: of the posterior.
        edge_weight: of the differences; let it grow over the first steps, for at full weight from the start it makes
            everything grey.
        kl_weight: of the divergence from the unit Gaussian.
        square_weight: of the squared error.
    """
    error = output.float() - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    if wanted.ndim == 5 and wanted.shape[2] > 1:
        edges = edges + error.diff(dim=2).abs().mean()
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    return (
        square_weight * error.square().mean() + 0.3 * error.abs().mean() + edge_weight * edges + kl_weight * divergence
    )
