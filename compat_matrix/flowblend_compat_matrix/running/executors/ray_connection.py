"""Joining a Ray cluster, or starting one on this machine, and leaving it again."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from types import ModuleType

from flowblend_plugins.errors import FlowBlendError, UsageError
from flowblend_plugins.extras import how_to_install

_CONNECT_LIMIT_S = 20.0
_PROBE = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"


def import_ray() -> ModuleType:
    """Import the package ray, or raise ``UsageError`` where it is not installed, with the extra that brings it."""
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            f"--executor ray needs the package ray, which cannot be imported ({error}). {how_to_install('ray')}"
        ) from error
    return ray


class RayConnection:
    """Connection of this process, as a driver, to a cluster.

    Args:
        address: ``"host:port"`` of an existing cluster or ``"auto"`` for the one that this machine belongs to;
            ``None`` takes ``RAY_ADDRESS``, and without it a cluster of this machine alone is started, to be stopped by
            :meth:`close`.

    Attributes:
        ray: the package.
        where: the cluster, in words.

    Raises:
        UsageError: Ray is not installed, or the address is of a kind that cannot be used.
        FlowBlendError: nothing answers there within 20 s, or not as a Ray cluster does.
    """

    def __init__(self, address: str | None = None) -> None:
        self.ray = import_ray()
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if "://" in address:
            raise UsageError(
                f"--ray-address {address}: a Ray Client address cannot carry the results of cells one by one. Give "
                "host:port of the head node from a machine of the cluster, or send the command with `ray job submit`."
            )
        self.where = "a cluster of this machine" if address == "local" else f"the cluster at {address}"
        self._exits = contextlib.ExitStack()
        if self.ray.is_initialized():  # a Python program that has joined already stays where it is
            return
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody has asked for reports to Ray's makers
        else:
            _probe(address)
        options = {"include_dashboard": False} if address == "local" else {}
        self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        self._exits.callback(self.ray.shutdown)

    def close(self) -> None:
        """Leave the cluster; the one that was started here is stopped."""
        self._exits.close()

    def num_gpus(self) -> int:
        return int(self.ray.cluster_resources().get("GPU", 0))

    def num_cpus(self) -> int:
        return int(self.ray.cluster_resources().get("CPU", 0))

    def accelerators(self) -> list[str]:
        """Kinds of accelerators as the cluster names them (``"H200"``); none where it has none or does not say."""
        prefix = "accelerator_type:"
        return sorted(name[len(prefix) :] for name in self.ray.cluster_resources() if name.startswith(prefix))


def _probe(address: str) -> None:
    """Join once in a process of its own: where no cluster answers, Ray tries for minutes, then ends its process."""
    try:
        found = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_CONNECT_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        reason = f"no Ray cluster answered within {_CONNECT_LIMIT_S:g} s"
    else:
        if found.returncode == 0:
            return
        lines = [line.strip() for line in found.stderr.splitlines() if line.strip()]
        reason = lines[-1].rstrip(".") if lines else f"joining it ended with exit code {found.returncode}"
    raise FlowBlendError(
        f"--ray-address {address}: {reason}. `ray status` on a machine of the cluster tells whether it is up, and its "
        "head node's address is what `ray start --head` printed there."
    )
