"""ONNX: graphs of our models with their weights beside them, written here and read back."""

from llmasos_jax.interop.onnx.read import open_onnx
from llmasos_jax.interop.onnx.write import write_onnx

__all__ = ["open_onnx", "write_onnx"]
