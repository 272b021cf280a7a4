"""The model zoo: every preset at full size without an array, its count, and its tiny twin."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_configs import PUBLISHED

from llmasos_jax.config.build import build, default_config, load_config
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.manifest import Generation, Manifest, parse_manifest, to_json
from llmasos_jax.generate.load import init_model
from llmasos_jax.hub.library import LIBRARY
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.models import zoo
from llmasos_jax.models.count import count_parameters
from llmasos_jax.models.definition import ModelDef, file_def
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.models.zoo.preset import printed
from llmasos_jax.nn.runtime import Runtime

NAMES = zoo.names()
TINY: dict[ModelConfig, str] = {}
for _name in NAMES:
    TINY.setdefault(zoo.preset(_name).tiny, _name)
# What the released weights hold beside the parameters of transformers' class: a bias of each
# expert, which is no parameter there because no gradient changes it.
BUFFERS = ("e_score_correction_bias",)
# Rows that transformers' class has and no token uses (RoBERTa counts positions from 2).
# Each encoder's class with the heads that were trained with it.
PRETRAINED = {
    "BertConfig": "BertForPreTraining",
    "RobertaConfig": "RobertaForMaskedLM",
    "ModernBertConfig": "ModernBertForMaskedLM",
}
UNUSED = {"roberta-base": 2 * 768, "roberta-large": 2 * 1024}


@pytest.mark.parametrize("name", NAMES)
def test_full_size_without_an_array(name: str) -> None:
    cfg = zoo.preset(name).config
    shapes = ModelDef(cfg, scan_layout(cfg)).shapes
    assert count_parameters(cfg) == sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", NAMES)
def test_count_is_the_published_one(name: str) -> None:
    preset = zoo.preset(name)
    assert preset.agrees(count_parameters(preset.config)), preset
    assert not preset.agrees(count_parameters(preset.config.replace(num_layers=200)))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize("name", PUBLISHED)
def test_count_is_that_of_transformers(name: str) -> None:
    """On the meta device, from the values of the published `config.json`."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    kind, values = PUBLISHED[name]
    config = getattr(transformers, kind)(**values)
    encoder = getattr(transformers, PRETRAINED.get(kind, ""), None)
    is_pair = kind in ("T5Config", "MT5Config")
    auto = transformers.AutoModelForCausalLM
    auto = transformers.AutoModelForSeq2SeqLM if is_pair else auto
    with torch.device("meta"):
        model = auto.from_config(config) if encoder is None else encoder(config)
    theirs = sum(p.numel() for p in model.parameters())
    theirs += sum(b.numel() for n, b in model.named_buffers() if n.endswith(BUFFERS))
    if is_pair and values.get("tie_word_embeddings") is False:
        # transformers 5 ties every fresh T5; of a published file it takes both tables.
        theirs += model.lm_head.weight.numel()
    assert count_parameters(zoo.preset(name).config) == theirs - UNUSED.get(name, 0)


def spelled_out(cfg: ModelConfig) -> ModelConfig:
    """The same model with what is derived written down."""
    return cfg.replace(
        num_heads=cfg.query_heads,
        num_kv_heads=cfg.kv_heads,
        head_dim=cfg.head_width,
        ffn_dim=cfg.ffn_width,
        attention_windows=tuple(cfg.layer_window(i) for i in range(cfg.num_layers)),
        attention_scale=cfg.attention_scale or cfg.head_width**-0.5,
    )


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_read_as_the_preset(name: str) -> None:
    """Every option, not the widths alone."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    kind, values = PUBLISHED[name]
    found = getattr(transformers, kind)(**values).to_dict()
    family = next(f for f in FAMILIES if f.model_type == found["model_type"])
    architecture = PRETRAINED.get(kind, family.architectures[0])
    # transformers 5 writes that every T5 is tied, and unties where a file has a second table.
    has_head = values.get("tie_word_embeddings") is False
    names = ["lm_head.weight"] if has_head else []
    keys = Keys({**found, "architectures": [architecture]}, "config.json", tensors=lambda: names)
    read = family.read_config(keys)
    keys.finish()
    assert spelled_out(read) == spelled_out(zoo.preset(name).config)


def test_every_preset_but_those_without_weights_is_in_the_table_of_published_configs() -> None:
    unpublished = {n for n in NAMES if zoo.preset(n).architecture in ("GPT-3", "PaLM")}
    assert set(NAMES) - unpublished == set(PUBLISHED)


@pytest.mark.parametrize("cfg", TINY, ids=TINY.values())
def test_tiny_twin_runs_and_keeps_the_options(cfg: ModelConfig) -> None:
    full = zoo.preset(TINY[cfg]).config
    definition = ModelDef(cfg, scan_layout(cfg))
    assert count_parameters(cfg) < 500_000

    def run(params: Any, tokens_bt: jax.Array) -> jax.Array:
        model = definition.bind(params)
        is_pair = cfg.encoder.num_layers > 0
        encoded = model.encode(tokens_bt[:, :4], runtime=Runtime()) if is_pair else None
        x_btd = model.hidden(tokens_bt, encoded=encoded, runtime=Runtime()).x_btd
        return x_btd if cfg.head is None else model.logits(x_btd, Runtime())

    out = jax.eval_shape(run, definition.shapes, jnp.zeros((2, 9), jnp.int32))
    assert out.shape == (2, 9, cfg.embedding_dim if cfg.head is None else cfg.vocab_size)
    sizes = {
        *("vocab_size", "embedding_dim", "num_layers", "context_length", "num_heads"),
        *("num_kv_heads", "head_dim", "ffn_dim", "attention_windows", "attention_scale"),
        *("embedding_scale", "logit_scale", "rope_scaling", "latent", "experts", "encoder"),
    }
    for field in dataclasses.fields(cfg):
        ours, theirs = getattr(cfg, field.name), getattr(full, field.name)
        if field.name not in sizes:
            assert ours == theirs, field.name
        else:
            assert (ours is None) == (theirs is None), field.name
    assert [w is None for w in cfg.attention_windows] == [w is None for w in full.attention_windows]
    assert (cfg.kv_heads == 1, cfg.kv_heads == cfg.query_heads) == (
        full.kv_heads == 1,
        full.kv_heads == full.query_heads,
    )


def test_scales_of_a_tiny_twin_follow_its_widths() -> None:
    gemma, palm = zoo.preset("gemma-2-27b"), zoo.preset("palm-8b")
    assert gemma.tiny.embedding_scale == pytest.approx(gemma.tiny.embedding_dim**0.5)
    assert palm.tiny.logit_scale == pytest.approx(palm.tiny.embedding_dim**-0.5)
    # 27B scales scores by less than 1 / sqrt(H): the ratio stays.
    ratio = (gemma.config.attention_scale or 0) * gemma.config.head_width**0.5
    assert (gemma.tiny.attention_scale or 0) * gemma.tiny.head_width**0.5 == pytest.approx(ratio)


def test_names() -> None:
    assert zoo.preset("LLaMA-7B") is zoo.presets()["llama-7b"]
    assert zoo.preset("smollm2-135m-instruct").name == "smollm2-135m"
    assert zoo.preset("mistral-7b-instruct").config != zoo.preset("mistral-7b").config
    assert zoo.find("gpt2") == zoo.preset("gpt2").config
    assert zoo.find("no-such-model") is None
    with pytest.raises(ConfigError, match='no preset is called "lama-7b"; did you mean "llama-7b"'):
        zoo.preset("lama-7b")


def test_the_library_and_the_presets_say_the_same_count() -> None:
    both = [row for row in LIBRARY.values() if zoo.find(row.name) and row.kind != "encoder"]
    assert len(both) > 60 and {"decoder", "encoder-decoder"} == {row.kind for row in both}
    for row in both:
        assert count_parameters(zoo.preset(row.name).config) == row.num_parameters, row.name


@pytest.mark.parametrize(
    ("figure", "value", "unit"),
    [("8.63B", 8.63e9, 1e7), ("62.50B", 62.5e9, 1e7), ("110M", 1.1e8, 1e7), ("355M", 3.55e8, 1e6)],
)
def test_printed_figures(figure: str, value: float, unit: float) -> None:
    assert printed(figure) == (pytest.approx(value), pytest.approx(unit))


def test_every_preset_can_be_written_as_a_model_and_set_in_a_config() -> None:
    for preset in zoo.presets().values():
        for cfg, tiny in ((preset.config, False), (preset.tiny, True)):
            start = Generation(decoder_start_id=0 if cfg.encoder.num_layers else None)
            family = preset.architecture
            manifest = Manifest(preset.name, cfg, architecture=family, generation=start)
            assert parse_manifest(to_json(manifest).encode()).parameters == cfg
            config = default_config()
            config.data.sequence_length = 64
            config.model.update(zoo.values(preset.name, tiny=tiny))
            assert build(config).model == cfg


def test_config_file_starts_from_a_preset() -> None:
    assert load_config("llama:7b").model == zoo.preset("llama-7b").config
    assert load_config("llama:3.2-1b").model == zoo.preset("llama-3.2-1b").config
    assert load_config("llama").model == zoo.preset("llama-7b").tiny
    with pytest.raises(ConfigError, match='"llama-8b"; did you mean'):
        load_config("llama:8b")


def test_random_weights_of_a_tiny_twin() -> None:
    model = init_model(zoo.preset("gpt3-175b").tiny, seed=1)
    logits = np.asarray(model.logits([list(range(20))]))
    assert logits.shape == (1, 20, 272) and np.isfinite(logits).all()
    assert file_def(model.config).cfg.attention_windows == (None, 8)
