"""The models of `round_trips.py`, and how one of them becomes a training checkpoint."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from family_twins import TWINS  # noqa: E402
from small_hf import read  # noqa: E402

from llmasos_jax.checkpoint.orbax import Checkpointer  # noqa: E402
from llmasos_jax.config.build import to_dict  # noqa: E402
from llmasos_jax.config.model import ModelConfig  # noqa: E402
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig  # noqa: E402
from llmasos_jax.format.manifest import Generation, Manifest  # noqa: E402
from llmasos_jax.format.names import expected, unflatten  # noqa: E402
from llmasos_jax.format.read import ModelFiles  # noqa: E402
from llmasos_jax.format.tensorfile import stored  # noqa: E402
from llmasos_jax.hub.open import open_model  # noqa: E402
from llmasos_jax.models.definition import ModelDef, file_def, relayout  # noqa: E402
from llmasos_jax.models.layout import scan_layout  # noqa: E402
from llmasos_jax.models.zoo import preset, presets  # noqa: E402

Make = Callable[[], ModelFiles]
# Beside one preset of each family: those that say something else.
MORE = (
    *("llama-3.1-8b", "gemma-2-2b", "gemma-3-1b", "qwen3-0.6b", "qwen2-57b-a14b", "qwen3-30b-a3b"),
    *("deepseek-v3", "t5-v1_1-small", "mt5-small"),
)
# Families without a preset, by their tiny model in the tests.
BESIDE = {"GPT-J": "gptj", "BLOOM": "bloom", "MPT": "mpt", "OPT": "opt", "Cohere": "cohere"}
REAL = {"SmolLM2-135M-Instruct": "smollm2-135m-instruct", "all-MiniLM-L6-v2": "all-minilm-l6-v2"}


def random_files(cfg: ModelConfig, family: str) -> ModelFiles:
    """Weights of a size that keeps activations, scales near 1."""
    rng, tensors = np.random.default_rng(0), {}
    for name, spec in expected(cfg).items():
        size = 0.3 if len(spec.shape) < 2 else 1 / math.sqrt(spec.shape[0])
        array = float(name.endswith("scale")) + size * rng.normal(size=spec.shape)
        tensors[name] = stored(array.astype(np.float32))
    start = 0 if cfg.encoder.num_layers else None
    generation = Generation(decoder_start_id=start)
    manifest = Manifest("tiny", cfg, architecture=family, generation=generation)
    return ModelFiles(Path(), manifest, tensors, None)


def tiny_models() -> dict[str, Make]:
    """By "FAMILY NAME"."""
    first = {row.architecture: row.name for row in reversed(list(presets().values()))}
    rows = [presets()[name] for name in (*first.values(), *MORE)]
    found = {
        f"{row.architecture} {row.name}": functools.partial(_of_preset, row.name)
        for row in sorted(rows, key=lambda row: list(first).index(row.architecture))
    }
    return found | {f"{f} {t}": functools.partial(_of_twin, f, t) for f, t in BESIDE.items()}


def _of_preset(name: str) -> ModelFiles:
    return random_files(preset(name).tiny, preset(name).architecture)


def _of_twin(family: str, name: str) -> ModelFiles:
    import transformers

    twin = TWINS[name]
    config = getattr(transformers, twin.config)(**twin.options)
    said = json.loads(config.to_json_string(use_diff=True))
    said["architectures"] = [twin.model or twin.config.replace("Config", "ForCausalLM")]
    return random_files(read(said), family)


def real_models(given: list[str] | None) -> dict[str, Make]:
    """By "real NAME"; of the library, or from where `given` says (NAME=SOURCE)."""
    sources = REAL | dict(part.split("=", 1) for part in given or ())
    return {f"real {n}": functools.partial(open_model, source) for n, source in sources.items()}


def orbax_run(files: ModelFiles, folder: Path) -> None:
    """A training folder whose one checkpoint has these weights, in the layout of training."""
    cfg = files.manifest.parameters
    config = Config(
        cfg,
        name=files.manifest.name,
        data=DataConfig(sequence_length=min(32, cfg.context_length)),
        objective=ObjectiveConfig(name=_objective(cfg)),
    )
    named = {n: jnp.asarray(t.read()) for n, t in files.tensors.items()}
    layout = scan_layout(cfg)
    params = relayout(unflatten(named), file_def(cfg).layout, ModelDef(cfg, layout).layout)
    state: dict[str, Any] = {
        "step": jnp.int32(1),
        "params": params,
        "opt_state": (jnp.int32(1),),
        "key": jax.random.key(0),
    }
    checkpoints = Checkpointer(folder / "checkpoints")
    checkpoints.save(1, state, {"next": 1}, to_dict(config))
    checkpoints.close()
    if files.tokenizer is not None:
        (folder / "tokenizer").mkdir()
        entry = files.tokenizer.save(folder / "tokenizer")
        (folder / "tokenizer" / "entry.json").write_text(json.dumps(entry))


def _objective(cfg: ModelConfig) -> str:
    if cfg.encoder.num_layers:
        return "span_corruption"
    if cfg.causal:
        return "causal"
    return "mlm_nsp" if cfg.next_sentence else "mlm"
