"""The onnx package, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from llmasos_jax.errors import MissingExtraError


def import_onnx() -> Any:
    """The onnx package.

    Raises:
      MissingExtraError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX graphs are written and read with the onnx package ({error}); "
            "pip install 'llmasos-jax[export]'"
        ) from error
    return onnx
