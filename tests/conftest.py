"""What every test shares. It runs before JAX is imported, so the environment can still be set."""

import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax-tests"

# Eight fake devices: sharding is tested on every machine, never skipped because it is a CPU.
os.environ["JAX_PLATFORMS"] = "cpu"
# On busy cores a device may wait long for the others: XLA would abort the process after 40 s.
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
# A silent broadcast over a new axis is how a [B, T] mask meets a [T, T] score; say it or fail.
# (Strict dtype promotion is not for us: optax's bias correction multiplies a float by an int32.)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A second run of the tests finds its programs compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import jax.monitoring  # noqa: E402

_QUICK = "jax_disable_most_optimizations"
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leaves out XLA's optimisations: most of the tests' time is compiling what runs once or twice.

    Where bits are promised, or the model is a real one, programs are what users have: such a file
    says `OPTIMIZED = True`. Commands in processes of their own always are.
    """
    was = jax.config.values[_QUICK]
    jax.config.update(_QUICK, not getattr(request.module, "OPTIMIZED", False))
    yield
    jax.config.update(_QUICK, was)


class CompileCount:
    """Counts programs that XLA was asked for since the last `reset` (found in the cache or not)."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> None:
        self.count = 0

    def _listen(self, event: str, duration: float, **_: object) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1


_COMPILES = CompileCount()
jax.monitoring.register_event_duration_secs_listener(_COMPILES._listen)


@pytest.fixture
def compiles() -> Iterator[CompileCount]:
    """A counter of compilations: `compiles.reset(); f(x); assert compiles.count == 0`."""
    _COMPILES.reset()
    yield _COMPILES


@pytest.fixture
def key() -> jax.Array:
    """The one key that tests start from."""
    return jax.random.key(0)


def _chips(topology: str) -> list:
    from jax.experimental import topologies

    return topologies.get_topology_desc(topology, "tpu").devices


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list]]:
    """The TPU compiler on a host without a TPU: gives the chips of a topology to compile for."""
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # What is compiled for devices that are not here cannot be read back from the cache.
    name = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, name)
    jax.config.update(name, 1e9)
    yield _chips
    jax.config.update(name, seconds)
