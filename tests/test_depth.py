"""A step over 80 layers is no larger a program than one over 8, wherever layers are a loop.

`experiments/acceptance/depth.py` also has the TPU compiler's programs, and the time of compiling.
"""

import re

import pytest
from on_meshes import MIXED, ONE, QUICK, SMALL, config, trainer_of

from llmasos_jax.config.schema import MeshConfig

LIMIT = 1.3
MESHES = {"one": ONE, "mixed": MIXED, "stages": MeshConfig(data=1, pipeline=2, fsdp=(2,))}


def sizes(num_layers: int, mesh: MeshConfig) -> dict[str, int]:
    """Lines and bytes of the program before and after the compiler, and its loops."""
    trainer = trainer_of(config(SMALL.replace(num_layers=num_layers), mesh, remat="full"))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    found = {}
    for name, text in (
        ("stablehlo", lowered.as_text()),
        ("hlo", lowered.compile(compiler_options=QUICK).as_text()),
    ):
        found |= {f"{name} lines": text.count("\n"), f"{name} bytes": len(text)}
    found["loops"] = len(re.findall(r" while\(", text))
    return found


@pytest.mark.parametrize("mesh", MESHES)
def test_a_program_does_not_grow_with_depth(mesh):
    few, many = (sizes(num_layers, MESHES[mesh]) for num_layers in (8, 80))
    assert few["loops"] == many["loops"] >= 2
    ratios = {name: many[name] / few[name] for name in few}
    assert max(ratios.values()) <= LIMIT, ratios
