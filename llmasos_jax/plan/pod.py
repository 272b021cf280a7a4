"""The devices of a TPU pod that is not here: enough to compile for."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from llmasos_jax.errors import ConfigError, MissingExtraError
from llmasos_jax.plan.chips import Topology, shapes_of

# Without these, libtpu asks the network what it runs on, and complains on standard error.
_NOT_ON_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def pod_devices(topology: Topology) -> list[Any]:
    """The devices of a pod, as JAX would see them there; programs compile for them, none runs.

    Raises:
      MissingExtraError: there is no libtpu.
      ConfigError: libtpu knows no such slice of a pod.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MissingExtraError(
            "the TPU compiler is not installed; pip install 'llmasos-jax[tpu]' brings it"
        )
    for name, value in _NOT_ON_A_TPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    shape = "x".join(map(str, topology.shape))
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{topology.chip.name}:{shape}",
            chip_config_name=topology.chip.config,
            num_slices=topology.slices,
            wrap=topology.wrap,
            **_small(topology),
        )
    except Exception as error:  # what the plugin raises is its own
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"libtpu cannot describe {topology} ({reason}); {shapes_of(topology.chip)}"
        ) from error
    return list(described.devices)


def _small(topology: Topology) -> dict[str, list[int]]:
    """Of less than a host's four chips, libtpu has to be told that these are all of its host."""
    if topology.num_chips // topology.slices >= 4:
        return {}
    return {"chips_per_host_bounds": list((*topology.shape, 1)[:3])}
