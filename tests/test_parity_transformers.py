"""`parity transformers:FOLDER ours`: agreement, and faults where the other side shows nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import rope_rows

from llmasos_jax import api
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError
from llmasos_jax.evals.parity import theirs
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.interop.hf import open_hf

OPTIMIZED = True  # conftest.py: programs as users have them

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

SIZES: dict[str, Any] = dict(
    vocab_size=80,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 of random weights: windows, soft caps, norms with 1 + scale."""
    out = tmp_path_factory.mktemp("theirs") / "gemma"
    config = transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=8)
    return made(config, out)


def made(config: Any, out: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            size = 0.4 if weight.ndim == 1 else weight.shape[1] ** -0.5
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(out)
    return out


def ours(folder: Path, out: Path, change: Any = None) -> Path:
    """Our model of a folder, with a fault planted."""
    files = open_hf(folder)
    cfg = files.manifest.parameters
    arrays = {n: np.asarray(t.read()) for n, t in files.tensors.items()}
    if change is not None:
        cfg, arrays = change(cfg, arrays)
    tensors = {n: stored(a) for n, a in arrays.items()}
    return write_model(out, files.manifest.replace(parameters=cfg), tensors)


def test_a_conversion_agrees(folder: Path, tmp_path: Path) -> None:
    found = api.parity(f"transformers:{folder}", ours(folder, tmp_path / "ours"))
    assert found.same and found.notes == ()
    assert [p.place for p in found.places] == [
        *("embedding", "layer 0", "layer 1", "final norm", "logits")
    ]
    assert 0 < max(p.relative for p in found.places) < 1e-5


FAULTS = {
    "rope layout": (rope_rows, "layer 0", "rope layout"),
    "norm offset": (
        lambda cfg, arrays: (cfg.replace(norm_unit_offset=False), arrays),
        "layer 0",
        "norm offset",
    ),
    "embedding scale": (
        lambda cfg, arrays: (cfg.replace(embedding_scale=1.0), arrays),
        "embedding",
        "embedding scale",
    ),
    "activation": (lambda cfg, arrays: (cfg.replace(mlp="geglu"), arrays), "layer 0", "activation"),
    "soft cap": (
        lambda cfg, arrays: (cfg.replace(logit_soft_cap=None), arrays),
        "logits",
        "logit soft cap",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_though_the_other_side_shows_nothing(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a family that this package does not read: only what transformers computes is known."""
    change, place, hint = FAULTS[name]
    monkeypatch.setattr(theirs, "_read_as_ours", lambda _: None)
    found = api.parity(f"transformers:{folder}", ours(folder, tmp_path / "ours", change))
    assert not found.same and found.first == place, found
    assert found.hint is not None and hint in found.hint and found.explains_all, found
    assert found.options == () and found.weights == () and "not readable as ours" in found.notes[0]


def test_a_wrong_weight_is_named(folder: Path, tmp_path: Path) -> None:
    def change(cfg: ModelConfig, arrays: dict[str, np.ndarray]) -> Any:
        return cfg, {**arrays, "layers.1.attn.v": arrays["layers.1.attn.v"][:, ::-1].copy()}

    found = api.parity(f"transformers:{folder}", ours(folder, tmp_path / "ours", change))
    assert found.first == "layer 1" and "layers.1.attn.v" in str(found.hint)
    assert "head order" in str(found.hint)


def test_ours_may_stand_first(folder: Path, tmp_path: Path) -> None:
    _, _, hint = FAULTS["activation"]
    wrong = ours(folder, tmp_path / "ours", FAULTS["activation"][0])
    found = api.parity(wrong, f"transformers:{folder}")
    assert not found.same and hint in str(found.hint)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no Hugging Face folder: it has no config.json"):
        api.parity(f"transformers:{tmp_path}", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "never-heard-of"}')
    with pytest.raises(FormatError, match="transformers does not open"):
        api.parity(f"transformers:{tmp_path}", tmp_path)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining"])
def test_an_mlm_head_agrees_and_a_fault_in_it_is_found(name: str, tmp_path: Path) -> None:
    sizes = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
    model = getattr(transformers, name)(transformers.BertConfig(**sizes, pad_token_id=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            size = 0.4 if weight.ndim == 1 else weight.shape[1] ** -0.5
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(tmp_path / "theirs")
    theirs = f"transformers:{tmp_path / 'theirs'}"
    found = api.parity(theirs, ours(tmp_path / "theirs", tmp_path / "ours"))
    assert found.same and found.places[-1].place == "logits"

    def other_sign(cfg: ModelConfig, arrays: Any) -> Any:
        return cfg, {**arrays, "head.transform.w": -arrays["head.transform.w"]}

    wrong = ours(tmp_path / "theirs", tmp_path / "wrong", other_sign)
    found = api.parity(theirs, wrong)
    assert not found.same and found.first == "logits" and "head.transform.w" in str(found.weights)
