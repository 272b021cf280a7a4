"""Loads models into memory: whatever `hub/open.py` opens by path or name, or random weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import FormatError, GenerationError, did_you_mean
from llmasos_jax.format.folder import find_manifest
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.read import read_manifest
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tokenizerfiles import TokenizerFiles, folder_tokenizer
from llmasos_jax.generate.adapters import place_adapters
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, check_dtype, place_random, place_tensors
from llmasos_jax.hub.adapters import open_adapters
from llmasos_jax.hub.open import kind_of, open_model
from llmasos_jax.models import zoo
from llmasos_jax.models.adapters import BITS, Adapters
from llmasos_jax.models.definition import ModelDef, file_def

_LOG = logging.getLogger(__name__)
_NUM_NAMED = 8  # of the added tokens beyond the model, in the log line

Source = str | os.PathLike[str]


def load_model(
    source: Source,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    quantize: str | None = None,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    adapters: Mapping[str, Source] | None = None,
) -> Model:
    """Loads a model and its tokenizer. A path that is there wins over a name.

    Args:
      source: a `model.json` or its folder; a training folder, its `checkpoints`, or one step of it;
        a Hugging Face folder (`config.json` and safetensors); a .gguf file; a name in the library
        (`llmasos models` lists them), or "org/name" on the Hugging Face hub. Weights are read one
        by one, nothing is converted on disk.
      dtype: "float32", "bfloat16" or "float16". None keeps the stored type, except on CPU, where
        bfloat16 and float16 become float32 while that fits in memory (a log line says so).
      mesh: the devices; weights are cut along its axis `tensor`. None is one device.
      quantize: "int8" or "int4" keeps the matrices of attention and MLPs in so many bits, with a
        scale for each output ("int4": for each 64 inputs of it); embeddings, norms, routers and the
        output layer stay as they are. None keeps all numbers. How much a model loses by it is
        measured in `experiments/acceptance/quantized_perplexity.py`. On a CPU "int8"
        decodes faster than float32 does; "int4" saves memory and is slower. Not with `adapters`.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.
      revision: a branch, tag or commit of a name on the hub; "name@revision" says the same.
      ignore: keys of a foreign config and tensors of foreign files that may get lost.
      adapters: what was trained beside this model, by names of your own: folders of LoRA runs of
        `llmasos finetune`, or as PEFT writes them. They stand beside the weights, which are there
        once; each call chooses one (`adapter=`), and no choice compiles anything.

    Raises:
      FormatError: there is no model, or it does not follow the format.
      HubError: a name that is not known, or whose files cannot be had.
      CheckpointError: a training run has no whole checkpoint.
      TokenizerError: its tokenizer cannot be read.
      GenerationError: an argument is out of range.
      ConfigError: the mesh does not cut a weight into equal parts.
    """
    bits = _checked_bits(quantize, adapters)
    check_dtype(dtype)
    _check_source(source)
    files = open_model(source, allow_code=allow_code, revision=revision, ignore=ignore)
    tokenizer = _tokenizer(files.manifest, files.tokenizer, allow_code)
    definition = file_def(files.manifest.parameters)
    if bits is not None:
        definition = ModelDef(definition.cfg, definition.layout, Adapters(bits=bits))
    placing = Placing(definition, _checked(mesh))
    stored = open_adapters(_checked_adapters(adapters), files)
    weights = place_tensors(placing, files.tensors, dtype)
    adapted = place_adapters(weights, files.tensors, stored) if stored else {}
    return Model(files.manifest, weights, tokenizer, adapted)


def init_model(
    source: Source | Manifest | ModelConfig,
    *,
    seed: int = 0,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    allow_code: bool = False,
) -> Model:
    """The model of a `model.json` with random weights, the same for one seed on every mesh.

    Args:
      source: a `model.json`, its folder or another path that `load_model` reads, a `Manifest`, the
        parameters alone, or the name of a preset (`models/zoo`: "palm-8b"). Weights that are there
        are not read.
      seed: of the weights, a whole number from 0 to 2^32 - 1.
      dtype: "float32", "bfloat16" or "float16".
      mesh: as in `load_model`.
      allow_code: as in `load_model`.

    Raises:
      FormatError: `source` does not follow the format.
      TokenizerError: its tokenizer cannot be read.
      GenerationError: an argument is out of range, or the weights do not fit in memory.
      ConfigError: the mesh does not cut a weight into equal parts.

    Example:
      >>> model = init_model(ModelConfig(vocab_size=100, embedding_dim=64, num_layers=2))
      >>> model.logits([[1, 2, 3]]).shape
      (1, 3, 100)
    """
    is_whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not is_whole or not 0 <= seed < 2**32:
        raise GenerationError(f"seed={seed!r} is not possible; give a whole number below 2**32")
    if isinstance(source, ModelConfig):
        source = _unnamed("random", source)
    if isinstance(source, Manifest):
        manifest, files = source, folder_tokenizer(source.tokenizer, Path(), is_shared=True)
    else:
        _check_source(source)
        manifest, files = _manifest_of(source, allow_code)
    tokenizer = _tokenizer(manifest, files, allow_code)
    placing = Placing(file_def(manifest.parameters), _checked(mesh))
    return Model(manifest, place_random(placing, jax.random.key(int(seed)), dtype), tokenizer)


def _manifest_of(source: Source, allow_code: bool) -> tuple[Manifest, TokenizerFiles | None]:
    """What a path or the name of a preset says of its model; downloads nothing."""
    path = Path(source)
    if not os.path.lexists(path):
        name = os.fspath(source)
        preset = zoo.find(name)
        if preset is None:
            near = "" if os.sep in name else did_you_mean(name.lower(), zoo.names())
            raise FormatError(f'"{name}" is not there, and no preset is called so{near}')
        return _unnamed(name.lower(), preset), None
    if kind_of(path) != "llmasos":
        files = open_model(path, allow_code=allow_code)
        return files.manifest, files.tokenizer
    manifest = read_manifest(path, allow_code=allow_code)
    folder = find_manifest(path).parent
    return manifest, folder_tokenizer(manifest.tokenizer, folder, is_shared=True)


def _unnamed(name: str, parameters: ModelConfig) -> Manifest:
    """What a `model.json` would say of parameters alone; a decoder begins with 0, as T5's does."""
    start_id = 0 if parameters.encoder.num_layers else None
    return Manifest(name, parameters, generation=Generation(decoder_start_id=start_id))


def _checked_adapters(adapters: Any) -> Mapping[str, Source]:
    if adapters is None:
        return {}
    shape = '{"name": folder}'
    if not isinstance(adapters, Mapping):
        raise GenerationError(f"adapters is a {type(adapters).__name__}; give a dict, {shape}")
    for name, source in adapters.items():
        if not isinstance(name, str) or not name or not isinstance(source, (str, os.PathLike)):
            raise GenerationError(f"adapters has {name!r}: {source!r}; give texts, {shape}")
    return adapters


def _check_source(source: Any) -> None:
    if not isinstance(source, (str, os.PathLike)):
        raise GenerationError(f"source is a {type(source).__name__}; give a path or a name")


def _checked(mesh: Any) -> Mesh | None:
    if mesh is not None and not isinstance(mesh, Mesh):
        raise GenerationError(f"mesh is a {type(mesh).__name__}; give a jax.sharding.Mesh or None")
    if mesh is None:
        return None
    if "tensor" not in mesh.axis_names:
        raise GenerationError(
            f'mesh has the axes {mesh.axis_names}; weights are cut along "tensor", so name one so: '
            'jax.make_mesh((2,), ("tensor",))'
        )
    # Whatever kind of axes the caller's mesh has, here the compiler places what is in between.
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def _tokenizer(
    manifest: Manifest, files: TokenizerFiles | None, allow_code: bool
) -> Tokenizer | None:
    if files is None:
        return None
    tokenizer = files.load(allow_code=allow_code)
    num_ids = manifest.parameters.vocab_size
    return tokenizer if tokenizer.vocab_size <= num_ids else _within(tokenizer, num_ids)


def _within(tokenizer: Tokenizer, num_ids: int) -> Tokenizer:
    """A tokenizer to which tokens were added that the model has no rows for: never to be read."""
    from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

    is_known = isinstance(tokenizer, HuggingFaceTokenizer)
    beyond = tokenizer.tokens_from(num_ids) if is_known else None
    begins = tokenizer.bos_id if tokenizer.adds_bos else None
    if not is_known or not beyond or (begins is not None and begins >= num_ids):
        raise FormatError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {num_ids}; they do "
            "not belong together"
        )
    names = [f"{shown(token)} ({i})" for i, token in beyond.items()]
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    _LOG.info(
        "added tokens beyond the model's %d ids: %s%s; a text that has one is refused",
        *(num_ids, ", ".join(names[:_NUM_NAMED]), more),
    )
    return tokenizer.within(num_ids)


def _checked_bits(quantize: Any, adapters: Any) -> int | None:
    """Bits of the codes, or None.

    Raises:
      GenerationError: another value, or one beside adapters.
    """
    if quantize is None:
        return None
    if quantize not in BITS:
        raise GenerationError(
            f"quantize={quantize!r} is not possible; give {' or '.join(map(repr, BITS))}, or None"
        )
    if adapters:
        raise GenerationError(
            f"quantize={quantize!r} is for a model without adapters; leave out one of them"
        )
    return BITS[quantize]
