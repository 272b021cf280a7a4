"""Runs the model of this folder; needs jax alone.

    python run.py 464 3139 286 --new=16      # ids of a prompt; prints the likeliest next ids

`forward` reads whole texts. `step` reads any number of tokens with a cache and gives the logits of
the next ones; `greedy` shows how. Shapes and names of all arrays are in stablehlo.json.
"""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import export

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def read_weights(folder):
    """The arrays of all safetensors files, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", 8 + length)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            array = data[begin:end].view(DTYPES[entry["dtype"]])
            found[name] = array.reshape(entry["shape"])
    return found


class Model:
    """A model's programs with its weights on the default device."""

    def __init__(self, folder=Path(__file__).parent):
        self.about = json.loads((folder / "stablehlo.json").read_text())
        self.weights = jax.device_put(read_weights(folder))
        self.programs = {
            name: jax.jit(export.deserialize((folder / program["file"]).read_bytes()).call)
            for name, program in self.about["programs"].items()
        }

    def call(self, program, **inputs):
        """Runs "forward", "step" or "encode"; inputs and outputs are arrays by their names."""
        return self.programs[program](self.weights, inputs)

    def empty_cache(self, **sizes):
        """Zeros for b rows, s slots and, behind an encoder, e tokens that it read."""
        size = lambda dim: math.prod(int(sizes.get(part, part)) for part in str(dim).split("*"))
        arrays = dict(self.about["programs"]["step"]["inputs"])
        del arrays["input_ids"]
        return {n: jnp.zeros(list(map(size, x["shape"])), x["dtype"]) for n, x in arrays.items()}

    def greedy(self, ids, count):
        """The `count` likeliest ids after these, one by one."""
        tokens = jnp.array([ids], jnp.int32)
        cache = self.empty_cache(b=1, s=len(ids) + count, e=len(ids))
        cache["length"] = jnp.array([len(ids)], jnp.int32)
        if "encode" in self.programs:
            kept = self.call("encode", input_ids=tokens, attention_mask=jnp.ones_like(tokens))
            cache |= kept
            tokens = jnp.array([[self.about["decoder_start_id"]]], jnp.int32)
        found = []
        for _ in range(count):
            cache = self.call("step", input_ids=tokens, **cache)
            tokens = cache.pop("logits")[:, -1:].argmax(-1).astype(jnp.int32)
            found.append(int(tokens[0, 0]))
        return found


if __name__ == "__main__":
    counts = [int(word.removeprefix("--new=")) for word in sys.argv[1:] if word[:1] == "-"]
    prompt = [int(word) for word in sys.argv[1:] if word[:1] != "-"]
    print(*Model().greedy(prompt, *(counts or [16])))
