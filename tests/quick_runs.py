"""Whole runs, compiled as fast as can be: a few steps of a tiny model need no optimising.

A test file that imports `quick_runs` has it, without naming it again.
"""

from collections.abc import Iterator

import jax
import pytest

_FLAG = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True, scope="module")
def quick_runs() -> Iterator[None]:
    was = jax.config.values[_FLAG]
    jax.config.update(_FLAG, True)
    yield
    jax.config.update(_FLAG, was)
