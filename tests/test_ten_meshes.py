"""A decoder with every option, experts, BERT: three steps on any mesh are those of one device.

`experiments/acceptance/ten_meshes.py` runs all models on all meshes. Here five have one each.
"""

import numpy as np
import pytest
from mesh_steps import MESHES, errors, three_steps, wanted
from tolerances import SIMPLE

CASES = {
    "tensor 8": "decoder",
    "pipeline 4": "decoder",
    "fsdp 2, context 2, tensor 2": "bert",
    "hsdp, 2 slices": "bert",
    "pipeline 2, expert 2, context 2": "experts",
}


@pytest.mark.parametrize("mesh", CASES)
def test_three_steps_are_one_devices(mesh):
    found, expected = three_steps(CASES[mesh], MESHES[mesh]), wanted(CASES[mesh])
    wrong = {n: e for n, e in errors(found, expected).items() if not e <= SIMPLE}
    assert not wrong
    losses = [float(sums.loss_sum / sums.weight_sum) for sums, _ in found]
    assert np.ptp(losses) > 0.01, "steps that change nothing prove nothing"


def test_each_axis_is_on_a_mesh_of_its_own_and_on_a_mixed_one():
    for axis in ("data", "fsdp", "tensor", "expert", "context", "pipeline"):
        on = [name for name in MESHES if f"{axis} " in name]
        assert any("," not in name for name in on) and any("," in name for name in on), axis
