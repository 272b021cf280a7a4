"""The configs of real pods: where their weights lie, which operations their steps are made of."""

import json

import pytest
from pod_fingerprints import CONFIGS, GOLDEN, difference, fingerprint, operations

from llmasos_jax.config.files import packaged_configs

pytest.importorskip("libtpu", reason="needs the extra `tpu`")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_is_what_it_was(name):
    assert not (changed := difference(name, fingerprint(name))), changed


def test_a_difference_says_what_and_how_to_look():
    golden = json.loads(GOLDEN.read_text())["configs"]["llama2_7b:v5e:2x4"]
    now = {"weights": golden["weights"][1:], "operations": [*golden["operations"], "1 x new"]}
    said = difference("llama2_7b:v5e:2x4", now)
    assert f"weights: -{golden['weights'][0]}" in said and "operations: +1 x new" in said
    assert "--text=step.mlir" in said and "--write" in said


def test_operations_are_counted_with_their_shapes():
    line = (
        '%1 = "stablehlo.all_gather"(%0) <{all_gather_dim = 0 : i64}> : '
        "(tensor<4x8xbf16>) -> tensor<16x8xbf16>"
    )
    assert operations(f"{line}\n{line}") == ["2 x all_gather: 4x8xbf16 16x8xbf16"]


def test_every_pod_config_is_packaged():
    assert {name.partition(":")[0] for name in CONFIGS} <= set(packaged_configs())
