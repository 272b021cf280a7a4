"""`parity` on encoder-decoders: a planted fault is found in the stack and layer where it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_hf import write

from llmasos_jax.cli.inspect import look
from llmasos_jax.evals.parity.compare import compare

T5 = {
    **dict(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True),
    **dict(vocab_size=40, d_model=16, d_kv=6, d_ff=24, num_layers=3, num_decoder_layers=2),
    **dict(num_heads=4, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    **dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1),
    **dict(relative_attention_num_buckets=8, relative_attention_max_distance=20),
}
FAULTS = {
    "encoder attention": ("encoder.block.1.layer.0.SelfAttention.q.weight", "encoder layer 1"),
    "encoder mlp": ("encoder.block.2.layer.1.DenseReluDense.wo.weight", "encoder layer 2"),
    "decoder attention": ("decoder.block.1.layer.0.SelfAttention.v.weight", "layer 1"),
    "cross-attention": ("decoder.block.0.layer.1.EncDecAttention.k.weight", "layer 0"),
}
PARTS = ("attention", "mlp", "attention", "cross-attention")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random numbers, centred, so that attention looks at single tokens."""
    path = tmp_path_factory.mktemp("t5") / "whole"
    write(path, T5)
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.standard_normal(x.shape) * (0.3 if x.ndim > 1 else 0.1) + (x.ndim == 1)).astype(
            np.float32
        )
        for name, x in load_file(path / "model.safetensors").items()
    }
    save_file(tensors, path / "model.safetensors")
    return path


def faulty(folder: Path, out: Path, name: str, change: Any) -> Path:
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, out / "model.safetensors")
    return out


def test_the_same(folder: Path) -> None:
    found = compare(folder, folder)
    assert found.same and [p.place for p in found.places] == [
        *("encoder embedding", "encoder layer 0", "encoder layer 1", "encoder layer 2"),
        *("encoder final norm", "embedding", "layer 0", "layer 1", "final norm", "logits"),
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is(fault: str, folder: Path, tmp_path: Path) -> None:
    name, place = FAULTS[fault]
    other = faulty(folder, tmp_path / "other", name, lambda x: -x)
    found = compare(folder, other)
    assert not found.same and found.first == place
    assert found.hint is not None and "sign" in found.hint and found.explains_all
    apart = {part.place for part in found.parts if part.relative > found.tolerance}
    assert apart == {fault.removeprefix("encoder ").removeprefix("decoder ")}
    assert ("cross-attention" in {p.place for p in found.parts}) == (place[:5] == "layer")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_table_of_relative_positions(stack: str, folder: Path, tmp_path: Path) -> None:
    """Past the last distance too: its bucket is one of the rows."""
    name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    last = 3 if stack == "encoder" else 7  # what lies far behind

    def change(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[last] += 1.5
        return x

    found = compare(folder, faulty(folder, tmp_path / "other", name, change))
    assert found.first == ("encoder layer 0" if stack == "encoder" else "layer 0")
    assert found.hint is not None and "relative.buckets" in found.hint and found.explains_all


def test_other_depths_of_the_encoder_are_no_fit(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", {**T5, "num_layers": 2})
    found = compare(folder, tmp_path / "other")
    assert not found.same and found.first == "the number of the encoder's layers (3 and 2)"


def test_inspect_shows_both_stacks(folder: Path) -> None:
    found = look(folder)
    assert found.architecture == "T5" and found.config is not None and found.tensors is not None
    assert found.config["encoder.num_layers"] == 3 and found.config["num_layers"] == 2
    assert found.tensors["encoder.layers.2.attn.q"] == "float32[16,4,6]"
    assert found.tensors["layers.1.cross_attn.o"] == "float32[4,6,16]"


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_transformers_is_the_truth(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    found = compare(f"transformers:{folder}", folder)
    assert found.same and len(found.places) == 10
    name, place = FAULTS["cross-attention"]
    other = faulty(folder, tmp_path / "other", name, lambda x: 2 * x)
    found = compare(f"transformers:{folder}", other)
    assert not found.same and found.first == place
    assert found.hint is not None and "2 times" in found.hint
