"""A small builder of ONNX graphs: nodes, constants, and weights that stand in a file beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.onnx.library import import_onnx

OPSET = 20
IR_VERSION = 9  # that came with this opset: older runtimes read no newer one
_TYPES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}


class Graph:
    """A graph that is being written; values are called by their names.

    Args:
      weights: what the model has, by our names. A graph takes those that it asks for.
      root: the graph that this one is inside of, of a loop or a branch; None for the outermost.

    Attributes:
      used: the weights that were asked for, with the shape that the graph sees.
      stem: what the names of values begin with.
    """

    def __init__(self, weights: Mapping[str, StoredTensor], root: Graph | None = None) -> None:
        self.onnx = import_onnx()
        self.used: dict[str, tuple[int, ...]] = {}
        self.stem = "" if root is None else root.stem
        self._weights = weights
        self._root = root or self
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._wide: dict[str, str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and gives its name; an input "" is left out."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, num: int, *inputs: str, **attributes: Any) -> list[str]:
        """Adds a node with `num` outputs, and gives their names."""
        root = self._root
        root._count += 1
        name = f"{root.stem}/{kind}_{root._count}"
        outputs = [name] if num == 1 else [f"{name}:{i}" for i in range(num)]
        node = self.onnx.helper.make_node(kind, list(inputs), outputs, name=name, **attributes)
        self._nodes.append(node)
        return outputs

    def name_as(self, value: str, name: str) -> None:
        """Gives a value a second name: that of an output."""
        self._nodes.append(self.onnx.helper.make_node("Identity", [value], [name], name=name))

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant array; equal ones are one."""
        array, constants = np.asarray(value, dtype), self._root._constants
        key = (str(array.dtype), array.shape, array.tobytes())
        return constants.setdefault(key, f"constant_{len(constants)}")

    def ints(self, *values: int) -> str:
        """A constant vector int64, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def weight(self, name: str, *shape: int, wide: bool = True) -> str:
        """A weight of the model as float32, seen as `shape`: the numbers stand as they are.

        With `wide=False` it has the type that it is stored in.

        Raises:
          ValueError: the model has no such weight, or not so many numbers.
        """
        root = self._root
        stored = self._weights.get(name)
        if stored is None or math.prod(stored.shape) != math.prod(shape):
            raise ValueError(f"the graph wants {name} {shape}, the model has {stored}")
        if root.used.setdefault(name, shape) != shape:
            raise ValueError(f"the graph wants {name} as {shape} and as {root.used[name]}")
        if stored.dtype == "float32" or not wide:
            return name
        if name not in root._wide:
            root._wide[name] = f"{name}/float32"
        return root._wide[name]

    def widened(self, value: str, name: str) -> str:
        """A value of the type of the weight `name`, as float32."""
        if self._weights[name].dtype == "float32":
            return value
        return self.op("Cast", value, to=self.onnx.TensorProto.FLOAT)

    def inside(self) -> Graph:
        """An empty graph for a loop's body or a branch; it sees the values of this one."""
        return Graph(self._weights, self._root)

    def body(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """What was added, as a GraphProto of `make_graph`; constants and weights are the root's."""
        return self.onnx.helper.make_graph(self._nodes, name, list(inputs), list(outputs))

    def value(self, name: str, dtype: str, *shape: int | str | None) -> Any:
        """The type of an input or output: "float32", "int64" or "bool"; texts are free sizes."""
        kinds = {"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}
        kind = getattr(self.onnx.TensorProto, kinds[dtype])
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def finish(
        self,
        name: str,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        places: Mapping[str, tuple[int, int]],
        data: str,
        notes: Mapping[str, str],
    ) -> Any:
        """The whole as a ModelProto.

        Args:
          name: of the graph.
          inputs: from `value`.
          outputs: from `value`.
          places: for each weight, where it begins in the file beside, and how many bytes it has.
          data: the name of that file.
          notes: kept as `metadata_props`.
        """
        helper, types = self.onnx.helper, self.onnx.TensorProto
        graph = self.body(name, inputs, outputs)
        widen = [
            helper.make_node("Cast", [weight], [wide], name=wide, to=types.FLOAT)
            for weight, wide in self._wide.items()
        ]
        nodes = widen + list(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
        for (dtype, shape, raw), constant in self._constants.items():
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            graph.initializer.append(helper.make_tensor(constant, kind, shape, raw, raw=True))
        for weight, shape in self.used.items():
            graph.initializer.append(self._outside(weight, shape, places[weight], data))
        model = helper.make_model(
            graph,
            producer_name="llmasos_jax",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(notes))
        return model

    def _outside(self, name: str, shape: tuple[int, ...], place: tuple[int, int], data: str) -> Any:
        types = self.onnx.TensorProto
        kind = getattr(types, _TYPES[self._weights[name].dtype])
        tensor = types(name=name, dims=shape, data_type=kind, data_location=types.EXTERNAL)
        said = {"location": data, "offset": str(place[0]), "length": str(place[1])}
        for key, value in said.items():
            tensor.external_data.add(key=key, value=value)
        return tensor
