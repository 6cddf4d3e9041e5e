"""Device and dtype of a loaded pipeline, and what of it waits in the memory of the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..types import Pipeline

if TYPE_CHECKING:  # options are read before torch is loaded
    import torch


@dataclass(frozen=True)
class Placement:
    """Place and precision of a loaded pipeline, as texts.

    Attributes:
        device: as torch names it (``"cuda:1"``); ``None`` for CUDA where there is one, else the CPU.
        dtype: as torch names it (``"float16"``); ``None`` for bfloat16 on an accelerator and float32 on the CPU.
        offload: ``"model"`` or ``"sequential"``: diffusers' ``enable_..._cpu_offload``; ``None`` keeps all of it on the
            device.
    """

    device: str | None = None
    dtype: str | None = None
    offload: str | None = None

    def torch_device(self) -> torch.device:
        """The device, on which something was computed. Raises ``UsageError`` where torch cannot compute there."""
        import torch

        wanted = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(wanted)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            cause = str(error).splitlines()[0].rstrip(".")
            raise UsageError(f"--device {wanted}: torch cannot compute there: {cause}. Give another device.") from error
        if self.offload and not self.device and device.type == "cpu":
            raise UsageError(f"--offload {self.offload} needs an accelerator, and torch finds none here. Leave it out.")
        return device

    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and activations."""
        import torch

        if self.dtype is not None:
            return getattr(torch, self.dtype)
        return torch.float32 if self.torch_device().type == "cpu" else torch.bfloat16

    def put(self, pipeline: Pipeline) -> Pipeline:
        """Move a pipeline that was loaded on the CPU to where it computes."""
        device = self.torch_device()
        if self.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif self.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        elif device.type != "cpu":
            pipeline.to(device)
        return pipeline
