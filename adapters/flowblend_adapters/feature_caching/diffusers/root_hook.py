"""A diffusers hook on a denoiser itself, kept in place while model offloading takes the denoiser's forward apart.

``enable_model_cpu_offload`` puts accelerate's forward on a denoiser, and at the end of every generation takes it off
and on again. A hook that had been put on in between is silently gone from the second generation on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from flowblend_plugins.types import Denoiser, Foreign


@contextlib.contextmanager
def kept_root_hook(denoiser: Denoiser, hook: Foreign) -> Iterator[Callable[[], None]]:
    """Enter it when the hook has been put on the denoiser, and leave it before the hook is taken off.

    Args:
        denoiser: the module whose ``forward`` the hook has replaced.
        hook: the ``diffusers.hooks.ModelHook`` that was registered last.

    Returns:
        On entering, the function to call when a generation begins: it puts the hook back where it was lost.
    """
    hooked = denoiser.forward

    def is_lost() -> bool:
        beneath = getattr(denoiser, "_old_forward", None)  # accelerate's name for what its own forward calls
        return hasattr(denoiser, "_hf_hook") and hooked is not denoiser.forward and hooked is not beneath

    def put_back() -> None:
        if is_lost():
            hook.fn_ref.original_forward = denoiser.forward
            denoiser.forward = hooked

    try:
        yield put_back
    finally:
        if is_lost():  # so that taking the hook off leaves the forward that is there now
            hook.fn_ref.original_forward = denoiser.forward
