"""Programs that look inside of models, compiled as fast as can be: here they run for milliseconds.

A test file that imports `quick` has it, without naming it again.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from llmasos_jax.evals.interpret import rows

QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def program(function: Any, definition: Any, runtime: Any, *static: Any) -> Any:
    """As `rows.program`, once for all tests."""
    run = functools.partial(function, definition, runtime, *static)
    return jax.jit(run, compiler_options=QUICK)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "program", program)
        yield
