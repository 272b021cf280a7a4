"""A training run seen as a model: its newest checkpoint's weights under the names of the format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import llmasos_jax
from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.leaves import Leaf
from llmasos_jax.checkpoint.manifest import require_sound
from llmasos_jax.checkpoint.stored import MASTERS, StoredState
from llmasos_jax.config.build import from_dict
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.errors import CheckpointError, FormatError
from llmasos_jax.format.folder import read_bytes
from llmasos_jax.format.manifest import MAX_BYTES, Generation, Manifest, refuse_code
from llmasos_jax.format.names import check_tensors, expected, place_of
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.strict import parse_json
from llmasos_jax.format.tensorfile import CODES, StoredTensor
from llmasos_jax.format.tokenizerfiles import folder_tokenizer
from llmasos_jax.models.layout import ENCODER, PARTS, Layout

TOKENIZER = "tokenizer"  # folder of a training run that holds its tokenizer's files
ENTRY = "entry.json"  # and there, the entry that goes into `model.json`
_PARAMS = "params/"


def open_training(
    source: str | os.PathLike[str], step: int | None = None, *, allow_code: bool = False
) -> ModelFiles:
    """Opens a training run as a model; reads no weights. One on a base: `hub.finetuned.open_run`.

    Args:
      source: a training folder, its `checkpoints` folder, or one step folder.
      step: which step; None takes the newest.
      allow_code: whether its config may name parts "package.module:name", which imports that
        module. Off by default: the folder may be a stranger's.

    Returns:
      The model. Each tensor is read from the checkpoint when asked for, one layer at a time.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      FormatError: the checkpoint's weights are not those of its config, or it names code.
    """
    state = StoredState(Path(source), step)
    require_sound(state.folder)
    config = from_dict(state.config)
    if config.finetune.base is not None:
        raise FormatError(
            f'"{source}" has what a run changed in "{config.finetune.base}" alone; open both as '
            "one with load_model"
        )
    model = run_model(state, config, allow_code=allow_code)
    sources = weight_sources(state.leaves)
    leaves = {name: state.leaves[source] for name, source in sources.items()}
    layout = layout_of(leaves, str(state.folder))
    tensors = _tensors(state, sources, config, layout)
    check_tensors(config.model, tensors, str(state.folder))
    return dataclasses.replace(model, tensors=MappingProxyType(tensors))


def run_model(state: StoredState, config: Config, *, allow_code: bool) -> ModelFiles:
    """A run's manifest and tokenizer, as a model without tensors.

    Raises:
      FormatError: it names code, and `allow_code` does not say that it may.
    """
    run = steps.training_folder(state.folder)
    manifest = Manifest(
        name=config.name,
        parameters=config.model,
        tokenizer=_tokenizer_entry(run),
        metadata={
            "step": state.step,
            "source": run.name,
            "config_sha256": config_sha256(state.config),
            "llmasos_jax": llmasos_jax.__version__,
        },
    )
    if not allow_code:
        refuse_code(manifest, str(state.folder))
    files = folder_tokenizer(manifest.tokenizer, run / TOKENIZER, leave_out=(ENTRY,))
    tokenizer = None if files is None else files.load(allow_code=allow_code)
    eos_id = None if tokenizer is None else tokenizer.eos_id
    start_id = decoder_start_id(config.model, tokenizer)
    generation = Generation(() if eos_id is None else (eos_id,), decoder_start_id=start_id)
    manifest = manifest.replace(generation=generation)
    return ModelFiles(state.folder, manifest, MappingProxyType({}), files)


def decoder_start_id(cfg: ModelConfig, tokenizer: Tokenizer | None) -> int | None:
    """The id that a trained decoder's text begins with: padding's, as objectives make batches.

    None for a model without an encoder.

    Example:
      >>> from llmasos_jax.config.heads import Encoder
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> decoder_start_id(ModelConfig(260, 64, 2, encoder=Encoder(2)), ByteTokenizer())
      258
    """
    if not cfg.encoder.num_layers:
        return None
    return 0 if tokenizer is None else vocabulary_of(tokenizer, cfg.vocab_size).pad_id


def layout_of(leaves: Mapping[str, Leaf], where: str) -> Layout:
    """How a run stored its layers, told from the names and shapes of its leaves.

    Args:
      leaves: of the parameters, by path ("periods/0/attn/q").
      where: the checkpoint, for messages.

    Raises:
      CheckpointError: stacked leaves have different numbers of rows.

    Example:
      >>> one, five = Leaf((3,), "float32"), Leaf((5, 3), "float32")
      >>> layout_of({"prefix/0/w": one, "periods/0/w": five}, "").num_layers
      6
    """
    stem = f"{ENCODER}/"
    below = {name.removeprefix(stem): v for name, v in leaves.items() if name.startswith(stem)}
    encoder = layout_of(below, where) if below else None
    names = {part: set() for part in PARTS}
    rows = set()
    for name, leaf in leaves.items():
        part, _, rest = name.partition("/")
        if part in names:
            names[part].add(rest.partition("/")[0])
        if part == "periods":
            rows.add(leaf.shape[0] if leaf.shape else 0)
    if len(rows) > 1:
        raise CheckpointError(
            f'checkpoint "{where}" has stacked leaves of {sorted(rows)} layers; they must agree'
        )
    count = rows.pop() if rows else 0
    sizes = (len(names["prefix"]), len(names["periods"]), count, len(names["suffix"]))
    return Layout(*sizes, encoder=encoder)


def weight_sources(leaves: Mapping[str, Leaf]) -> dict[str, str]:
    """Where each weight is read from: the float32 copy of a bfloat16 one, if the run keeps it."""
    names = [name.removeprefix(_PARAMS) for name in leaves if name.startswith(_PARAMS)]
    copies = {name: f"{MASTERS}/{name}" for name in names}
    return {n: copy if copy in leaves else _PARAMS + n for n, copy in copies.items()}


def _tensors(
    state: StoredState, sources: Mapping[str, str], config: Config, layout: Layout
) -> dict[str, StoredTensor]:
    """The tensors under the format's names; a leaf that belongs to none keeps its own name."""
    model = config.model
    leaves = {name: state.leaves[source] for name, source in sources.items()}
    encoder_layers = 0 if layout.encoder is None else layout.encoder.num_layers
    for name, found, wanted in (
        ("num_layers", layout.num_layers, model.num_layers),
        ("encoder.num_layers", encoder_layers, model.encoder.num_layers),
    ):
        if found != wanted:
            raise FormatError(
                f"{state.folder}: the checkpoint has {found} layers, its config says "
                f"model.{name}={wanted}"
            )
    tensors: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for name in expected(config.model):
        path, row = place_of(name, layout)
        if path in leaves:
            used.add(path)
            shape = leaves[path].shape[0 if row is None else 1 :]
            read = functools.partial(state.read, sources[path], row)
            tensors[name] = StoredTensor(shape, _stored_dtype(path, leaves[path]), read)
    for path in leaves.keys() - used:
        read = functools.partial(state.read, sources[path])
        tensors[path.replace("/", ".")] = StoredTensor(leaves[path].shape, leaves[path].dtype, read)
    return tensors


def _stored_dtype(path: str, leaf: Leaf) -> str:
    if leaf.dtype not in CODES:
        raise FormatError(f"{path} is {leaf.dtype}; the format stores {', '.join(CODES)}")
    return leaf.dtype


def config_sha256(config: Mapping[str, Any]) -> str:
    """A hash of a resolved config, the same for equal configs.

    Example:
      >>> config_sha256({"a": 1, "b": 2}) == config_sha256({"b": 2, "a": 1})
      True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_entry(run: Path) -> dict[str, Any] | None:
    path = run / TOKENIZER / ENTRY
    if not path.exists():
        return None
    entry = parse_json(read_bytes(path, MAX_BYTES), str(path))
    if not isinstance(entry, dict):
        raise FormatError(f"{path} must hold a JSON object")
    return entry
