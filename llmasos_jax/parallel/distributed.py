"""Joins the processes of a run: one on each host, each with its own devices.

`join` comes first, before JAX looks for its devices. It finds out who belongs to the run
(`environment.py`), waits until all are there (`roll.py`), and starts JAX's own service beside that.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from typing import Any

from llmasos_jax.config.devices import HostsConfig
from llmasos_jax.errors import ConfigError, LLMasOSError, PreemptedError, TrainingFailedError
from llmasos_jax.parallel.abort import delay_abort
from llmasos_jax.parallel.environment import find_place, hostname
from llmasos_jax.parallel.relay import Relay
from llmasos_jax.parallel.roll import Roll, answer


class _Membership:
    """What this process has joined; at most one run in its life, as JAX has it."""

    roll: Roll | None = None
    has_looked = False  # for a lost process behind an error
    # The exit status of a process whose run has failed; None while it has not.
    status: int | None = None


_OWN = _Membership()


def current() -> Roll | None:
    """The roll that this process has joined; None if its run has one process.

    Example:
      >>> current() is None
      True
    """
    return _OWN.roll


def join(hosts: HostsConfig) -> Roll | None:
    """Joins the run that the config or the environment speaks of, once; says so in one line.

    A program that has called `jax.distributed.initialize` itself keeps what it has made.

    Args:
      hosts: addresses by hand, and time limits.

    Returns:
      The roll, or None where the run has one process.

    Raises:
      ConfigError: the environment says half of it, or JAX has looked for devices before.
      TrainingFailedError: not all processes came in `hosts.start_timeout_s`.
    """
    if _OWN.roll is not None or _is_initialized():
        return _OWN.roll
    place = find_place(hosts)
    if place is None:
        return None
    name = hostname()
    # Before the wait for the others, which may be minutes.
    print(f"llmasos: {place} ({name})", file=sys.stderr, flush=True)
    roll = answer(place, name, hosts)
    _initialize(roll, hosts)
    # Before the handler that JAX has registered: this one runs first.
    atexit.register(_leave)
    _OWN.roll = roll
    return roll


def failed(error: BaseException) -> None:
    """Tells the other processes what ended this one; they end too.

    If it ended because another one is lost, that is found out first: the watch then ends this
    process with the other's name.
    """
    roll = _OWN.roll
    if roll is None or isinstance(error, PreemptedError) or _OWN.status is not None:
        return
    find_loss(error)
    words = str(error).split("\n  ")[0]
    roll.fail(words if isinstance(error, LLMasOSError) else f"{type(error).__name__}: {words}")
    _OWN.status = getattr(error, "exit_status", TrainingFailedError.exit_status)


def find_loss(error: BaseException) -> None:
    """If an error may come of a lost process, waits for the watch, which ends this one then."""
    if _OWN.roll is not None and not _OWN.has_looked and _is_of_another(error):
        _OWN.has_looked = True
        _OWN.roll.wait_for_a_loss()


def _is_initialized() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _initialize(roll: Roll, hosts: HostsConfig) -> None:
    """Starts JAX's service with the addresses that the roll knows."""
    jax: Any = importlib.import_module("jax")
    place = roll.place
    # On CPUs the processes compute together through gloo; TPUs and GPUs have their own ways.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    delay_abort()
    # SIGTERM is ours (`train/preemption.py`), and all stop after the step that the roll agrees on.
    jax.config.update("jax_enable_preemption_service", False)
    address = f"{place.host}:{place.port + 1}"
    if place.index:
        address = Relay(place.host, place.port + 1).address
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=_local_device_ids(roll),
            cluster_detection_method="deactivate",
            initialization_timeout=hosts.start_timeout_s,
            # The roll is faster; this is for the case that its own thread stands still.
            heartbeat_timeout_seconds=2 * hosts.heartbeat_timeout_s + 10,
            shutdown_timeout_seconds=60,
        )
    except RuntimeError as error:
        if "before" not in str(error):
            raise
        raise ConfigError(
            "JAX has made its devices before the processes of this run were joined; call "
            "llmasos.train before anything that computes, or jax.distributed.initialize first"
        ) from error


def _local_device_ids(roll: Roll) -> list[int] | None:
    """One GPU for each process of a host, where the launcher starts so many; None takes all."""
    name = roll.names[roll.place.index]
    here = [number for number, other in enumerate(roll.names) if other == name]
    is_chosen = any(v in os.environ for v in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"))
    if not roll.place.is_per_device or len(here) == 1 or is_chosen:
        return None
    return [here.index(roll.place.index)]


def _leave() -> None:
    """At the end of the process: goodbye, or an end that waits for nobody."""
    roll = _OWN.roll
    if roll is None:
        return
    error = getattr(sys, "last_value", None)  # what no one has caught
    if _OWN.status is None and error is not None:
        failed(error)
        _OWN.status = 1 if _OWN.status is None else _OWN.status
    if _OWN.status is not None:
        # JAX would wait for the others, and they are gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_OWN.status)
    roll.gather(None)
    importlib.import_module("jax").distributed.shutdown()
    roll.leave()


def _is_of_another(error: BaseException) -> bool:
    """Whether an error may come of another process being gone: a collective that broke."""
    seen: BaseException | None = error
    while seen is not None:
        # A collective that breaks while it is dispatched is a ValueError, told by its words alone.
        is_of_xla = type(seen).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        if (is_of_xla or "Gloo " in str(seen)) and not str(seen).startswith("RESOURCE_EXHAUSTED"):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
