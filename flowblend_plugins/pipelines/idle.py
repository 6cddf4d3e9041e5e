"""Placement of the denoisers that are not answering: on the device, or on the CPU until their stage comes.

A denoiser is moved as a whole, at the call that it answers: adapters that ask another denoiser in the middle of a step
are served too. Between two generations the large denoiser is on the device and the others are on the CPU, so that the
pipeline stands on the device that it was moved to.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import RoutingError
from ..types import Denoiser

IDLE_PLACEMENTS = ("keep", "cpu", "prefetch")


class Mover:
    """Moves whole denoisers between the CPU and one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def is_there(self, denoiser: Denoiser) -> bool:
        """Whether a denoiser is on the device."""
        return device_of(denoiser) == self.device

    def bring(self, denoiser: Denoiser) -> None:
        """Put a denoiser on the device."""
        denoiser.to(self.device)

    def bring_ahead(self, denoiser: Denoiser) -> None:
        """Begin to put a denoiser on the device, beside what the device is computing."""
        if self._side is None:
            return
        with torch.cuda.stream(self._side):
            denoiser.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Let what is computed from now on wait for what was brought ahead."""
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)

    def send_away(self, denoiser: Denoiser) -> None:
        """Put a denoiser on the CPU; what the device still computes with it is waited for."""
        denoiser.to("cpu")


class IdleDenoisers:
    """Keeps one denoiser of a pipeline on its device at a time, or two while the next one is brought ahead.

    Args:
        denoisers: by letter.
        idle: ``"keep"`` moves nothing, ``"cpu"`` and ``"prefetch"`` do.

    Raises:
        RoutingError: ``idle`` is something else.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module], idle: str) -> None:
        if idle not in IDLE_PLACEMENTS:
            raise RoutingError(f"idle={idle!r}: expected one of {', '.join(map(repr, IDLE_PLACEMENTS))}.")
        self._denoisers: dict[str, Any] = dict(denoisers)
        self._idle = idle
        self._moves = idle != "keep"
        self._came_there: list[nn.Module] | None = None
        self._ahead: nn.Module | None = None

    def attach(self) -> None:
        """Send all but the large denoiser away.

        Raises:
            RoutingError: the pipeline is offloaded, or a denoiser cannot be moved.
        """
        if not self._moves:
            return
        self._refuse_offloading()
        self._mover = Mover(device_of(self._denoisers["L"]))
        self._came_there = [one for one in self._denoisers.values() if self._mover.is_there(one)]
        if self._mover.device.type == "cpu":
            warnings.warn(
                f"idle={self._idle!r} has no effect: the large denoiser is on the CPU. Move the pipeline first, with "
                'pipe.to("cuda").',
                stacklevel=4,
            )
        self.use(self._denoisers["L"])

    def detach(self) -> None:
        """Put every denoiser back where it was."""
        if self._came_there is None:
            return
        for denoiser in self._denoisers.values():
            came_there = any(denoiser is one for one in self._came_there)
            if came_there and not self._mover.is_there(denoiser):
                self._mover.bring(denoiser)
            elif self._mover.is_there(denoiser) and not came_there:
                self._mover.send_away(denoiser)

    def begin(self) -> None:
        """Look anew, where a generation begins, for the device: the pipeline may have been moved since.

        Raises:
            RoutingError: the pipeline was offloaded since.
        """
        if not self._moves:
            return
        self._refuse_offloading()
        if not self._mover.is_there(self._denoisers["L"]):
            self._mover = Mover(device_of(self._denoisers["L"]))
        self.use(self._denoisers["L"])

    def end(self) -> None:
        """Bring the large denoiser back where a generation has ended, or failed."""
        self._ahead = None
        if self._moves:
            self.use(self._denoisers["L"])

    def use(self, denoiser: nn.Module) -> None:
        """Put the denoiser that is called next on the device, and all others on the CPU."""
        if not self._moves:
            return
        self._mover.wait()
        if denoiser is self._ahead:
            self._ahead = None
        for other in self._denoisers.values():
            if other is not denoiser and other is not self._ahead and self._mover.is_there(other):
                self._mover.send_away(other)
        if not self._mover.is_there(denoiser):
            self._mover.bring(denoiser)

    def expect(self, denoiser: nn.Module) -> None:
        """Begin to bring the denoiser of the next step, where that was asked for."""
        if self._idle == "prefetch" and not self._mover.is_there(denoiser):
            self._mover.bring_ahead(denoiser)
            self._ahead = denoiser

    def _refuse_offloading(self) -> None:
        from diffusers.hooks.group_offloading import _is_group_offload_enabled

        for letter, denoiser in self._denoisers.items():
            if hasattr(denoiser, "_hf_hook") or _is_group_offload_enabled(denoiser):
                raise RoutingError(
                    f"idle={self._idle!r} moves whole denoisers, and denoiser {letter} is offloaded already. Leave "
                    'idle="keep" for an offloaded pipeline, or take the offloading off first: '
                    "pipe.remove_all_hooks()."
                )


def device_of(denoiser: Denoiser | nn.Module) -> torch.device:
    """Device that a denoiser's first weight is on."""
    return next(iter(denoiser.parameters())).device
