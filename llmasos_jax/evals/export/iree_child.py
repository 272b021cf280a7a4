"""Compiled programs of an export, run by IREE.

    python -m llmasos_jax.evals.export.iree_child ASKED

ASKED is a folder with `asked.json` (which programs, their names of inputs and outputs, the export)
and `asked.npz`; what came out is written beside them. A process of its own, since a program that
IREE compiled wrongly may end it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.format.read import read_model


class Programs:
    """Compiled programs with the weights of an export on IREE's CPU device.

    Args:
      asked: `asked.json`.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._runtime: Any = importlib.import_module("iree.runtime")
        self._config, self._asked = self._runtime.Config("local-task"), asked
        tensors = read_model(Path(asked["folder"]), allow_code=True).tensors
        # As jax flattens a dict: sorted by name.
        self._weights = [self._put(np.asarray(tensors[name].read())) for name in sorted(tensors)]
        self._called = {name: self._loaded(one["file"]) for name, one in asked["programs"].items()}

    def call(self, name: str, **inputs: Any) -> dict[str, Any]:
        """Runs a program on arrays by their names; what comes out stays on the device."""
        given = [self._put(inputs[n]) for n in self._asked["programs"][name]["inputs"]]
        found = self._called[name](*self._weights, *given)
        found = found if isinstance(found, tuple | list) else [found]
        return dict(zip(self._asked["programs"][name]["outputs"], found, strict=True))

    def _loaded(self, file: str) -> Any:
        runtime = self._runtime
        context = runtime.SystemContext(config=self._config)
        module = runtime.VmModule.copy_buffer(context.instance, Path(file).read_bytes())
        context.add_vm_module(module)
        return context.modules[module.name]["main"]

    def _put(self, x: Any) -> Any:
        runtime = self._runtime
        if isinstance(x, runtime.DeviceArray):
            return x
        device, x = self._config.device, np.asarray(x, order="C")
        if x.dtype.name != "bfloat16":
            return runtime.asdevicearray(device, x)
        view = device.allocator.allocate_buffer_copy(
            memory_type=runtime.MemoryType.DEVICE_LOCAL,
            allowed_usage=runtime.BufferUsage.DEFAULT | runtime.BufferUsage.MAPPING,
            device=device,
            buffer=x.view(np.uint16),
            element_type=runtime.HalElementType.BFLOAT_16,
        )
        return runtime.DeviceArray(device, view)


def forward(programs: Programs, asked: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answers of `forward` to inputs called "NUMBER NAME", under such names."""
    found = {}
    for number in sorted({name.split()[0] for name in asked}):
        of = {n.split()[1]: x for n, x in asked.items() if n.split()[0] == number}
        for name, x in programs.call(f"forward {number}", **of).items():
            found[f"{number} {name}"] = np.asarray(x)
    return found


def greedy(programs: Programs, asked: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The likeliest ids after a prompt; it too goes through the cache id by id."""
    cache: dict[str, Any] = dict(asked)
    prompt, count = cache.pop("prompt").tolist(), int(cache.pop("count"))
    if "source_ids" in cache:
        read = {"input_ids": cache.pop("source_ids"), "attention_mask": cache.pop("source_mask")}
        cache |= programs.call("encode", **read)
    found: list[int] = []
    while len(found) < count:
        token = prompt.pop(0) if prompt else found[-1]
        cache = programs.call("step", input_ids=np.array([[token]], np.int32), **cache)
        logits = np.asarray(cache.pop("logits"))
        if not prompt:
            found.append(int(logits[0, -1].argmax()))
    return {"ids": np.array(found)}


def main(arguments: list[str]) -> int:
    """Answers one question."""
    folder = Path(arguments[0])
    asked = json.loads((folder / "asked.json").read_bytes())
    with np.load(folder / "asked.npz") as arrays:
        given = dict(arrays)
    answer = {"forward": forward, "greedy": greedy}[asked["kind"]]
    try:
        found = answer(Programs(asked), given)
    except (ValueError, RuntimeError, TypeError) as error:  # how the runtime says that it does not
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    np.savez(folder / "found.npz", **found)  # pyright: ignore[reportArgumentType]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
