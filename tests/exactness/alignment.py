"""Weights put where the test wants them in memory, so that like is compared with like on every processor.

A product of matrices may depend, in its last bits, on where its operands lie: on some processors MKL multiplies a
single row (a time embedding, say) in another order where the weights are aligned to 8 bytes but not to 16. torch's own
memory is aligned to 64; weights mapped from a safetensors file begin wherever its header ends.

``MKL_CBWR=AUTO`` in the environment would hide it. It is not set, for then the tests would not run the arithmetic that
users run, would still rest on one library's promise, and every process that a test starts would have to inherit it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

GRID = 64
"""Bytes; torch's own allocations begin at multiples of it."""


def place(owner: Any, remainder: int = 0) -> Any:
    """Copy every weight and buffer into memory of its own, and give the owner back.

    Args:
        owner: a module, or a pipeline of which all modules are meant.
        remainder: of each first address, modulo 64 bytes; 0 is how torch allocates.
    """
    modules = [owner] if isinstance(owner, nn.Module) else owner.components.values()
    for module in modules:
        if isinstance(module, nn.Module):
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = _copied(tensor.data, remainder)
    return owner


def _copied(tensor: torch.Tensor, remainder: int) -> torch.Tensor:
    num_bytes = tensor.numel() * tensor.element_size()
    room = torch.empty(num_bytes + 2 * GRID, dtype=torch.uint8)
    first = (remainder - room.data_ptr()) % GRID
    copy = room[first : first + num_bytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
