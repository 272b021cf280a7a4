"""`model.json` as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Classifier, Encoder
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.errors import ConfigError, FormatError, did_you_mean
from llmasos_jax.format.strict import check, parse_json, schema, shown

FORMAT_VERSION = "1"
MAX_BYTES = 16 * 2**20  # of model.json
_GROUPS = {
    "rope_scaling": RopeScaling,
    "latent": LatentAttention,
    "experts": Experts,
    "encoder": Encoder,
    "classifier": Classifier,
}


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file: its name in the model's folder, length in bytes, SHA-256 in hex."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Weights:
    """The files with the weights, and the index of which tensor is where (None: one file)."""

    files: tuple[WeightsFile, ...]
    index: str | None = None


@dataclass(frozen=True)
class Generation:
    """How text is generated.

    Attributes:
      eos_ids: ids that end a text.
      stop: strings before which a text ends.
      chat_template: Jinja template that makes one prompt of messages; None if there is none.
      decoder_start_id: id that the decoder of an encoder-decoder begins with; None elsewhere.
    """

    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    chat_template: str | None = None
    decoder_start_id: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What `model.json` says.

    Attributes:
      name: the model's name.
      version: the model's own version.
      architecture: "Transformer" or the family; it names, `parameters` alone say what is computed.
      parameters: what the Transformer is.
      format_version: of this format, "1" or "1.MINOR".
      weights: the files with the weights; None where the file does not list them.
      tokenizer: the entry that `data.tokenizer.load_tokenizer` takes; None if the model reads ids.
      generation: where generated text ends.
      metadata: anything; it never changes what the model computes.
    """

    name: str
    parameters: ModelConfig
    version: str = "1.0"
    architecture: str = "Transformer"
    format_version: str = FORMAT_VERSION
    weights: Weights | None = None
    tokenizer: Mapping[str, Any] | None = None
    generation: Generation = field(default_factory=Generation)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def replace(self, **changes: Any) -> Manifest:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def parse_manifest(raw: bytes, where: str = "model.json") -> Manifest:
    """Reads the text of a `model.json`.

    Args:
      raw: UTF-8 JSON.
      where: the file, for messages.

    Raises:
      FormatError: it does not follow the format. No other error comes out, whatever the bytes.

    Example:
      >>> seed = b'''{"name": "m", "version": "1.0", "architecture": "Transformer",
      ...   "parameters": {"vocab_size": 10000, "embedding_dim": 512, "num_layers": 12}}'''
      >>> parse_manifest(seed).parameters.query_heads
      8
    """
    if len(raw) > MAX_BYTES:
        raise FormatError(f"{where} has {len(raw)} bytes; a model.json has at most {MAX_BYTES}")
    found = parse_json(raw, where)
    _check_version(found, where)
    check(found, schema(), "", where)
    _check_tokenizer(found.get("tokenizer"), where)
    weights = found.get("weights")
    generation = found.get("generation", {})
    parameters = _parameters(found["parameters"], where)
    eos_ids = tuple(generation.get("eos_ids", ()))
    _check_ids(eos_ids, "eos_ids", parameters, where)
    start_id = generation.get("decoder_start_id")
    _check_ids(() if start_id is None else (start_id,), "decoder_start_id", parameters, where)
    if (start_id is not None) != (parameters.encoder.num_layers > 0):
        raise FormatError(
            f"{where}: generation.decoder_start_id={start_id} with parameters.encoder.num_layers="
            f"{parameters.encoder.num_layers}; an encoder-decoder needs it, other models have none"
        )
    return Manifest(
        name=found["name"],
        version=found["version"],
        architecture=found["architecture"],
        parameters=parameters,
        format_version=found.get("format_version", FORMAT_VERSION),
        weights=None if weights is None else _weights(weights, where),
        tokenizer=found.get("tokenizer"),
        generation=Generation(
            eos_ids, tuple(generation.get("stop", ())), generation.get("chat_template"), start_id
        ),
        metadata=found.get("metadata", {}),
    )


def _check_ids(ids: tuple[int, ...], key: str, parameters: ModelConfig, where: str) -> None:
    for token in ids:
        if token >= parameters.vocab_size:
            raise FormatError(
                f"{where}: generation.{key} has {token}, the model's ids end at "
                f"vocab_size - 1 = {parameters.vocab_size - 1}"
            )


def _check_version(found: Any, where: str) -> None:
    """A newer major is refused by name, before anything else in the file can look wrong."""
    version = found.get("format_version", FORMAT_VERSION) if isinstance(found, dict) else None
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", version):
        if isinstance(found, dict):
            raise FormatError(
                f'{where}: format_version = {shown(version)} must be a string such as "1"'
            )
        return
    if int(version.split(".")[0]) != int(FORMAT_VERSION):
        raise FormatError(
            f"{where} is of format {version}, this program reads format {FORMAT_VERSION}; "
            "update llmasos_jax, or convert the model with the program that wrote it"
        )


def _check_tokenizer(entry: dict[str, Any] | None, where: str) -> None:
    """The format's own kinds have no keys but those that the schema lists."""
    if entry is None or ":" in entry["kind"]:
        return
    known = schema()["properties"]["tokenizer"]["properties"]
    for key in entry:
        if key not in known:
            hint = did_you_mean(shown(key), known)
            raise FormatError(f'{where}: "tokenizer.{shown(key)}" is not a key of format 1{hint}')


def _parameters(found: dict[str, Any], where: str) -> ModelConfig:
    values = _as_fields(found, ModelConfig)
    for name, kind in _GROUPS.items():
        values[name] = kind(**_as_fields(found.get(name, {}), kind))
    try:
        return ModelConfig(**values)
    except ConfigError as error:
        text = str(error).replace("model.", "parameters.")
        raise FormatError(f"{where}: {text}") from error


def _as_fields(found: dict[str, Any], kind: type) -> dict[str, Any]:
    """JSON values as a dataclass holds them: 10000 is 10000.0 where it is a float, lists tuples."""
    floats = {f.name for f in dataclasses.fields(kind) if str(f.type).startswith("float")}
    return {
        k: float(v) if k in floats and v is not None else tuple(v) if isinstance(v, list) else v
        for k, v in found.items()
    }


def _weights(found: dict[str, Any], where: str) -> Weights:
    files = tuple(WeightsFile(**entry) for entry in found["files"])
    names = [entry.file for entry in files] + [found.get("index") or "model.json", "model.json"]
    twice = sorted({n for n in names[:-1] if names[:-1].count(n) > 1})
    if twice or "model.json" in names[: len(files)]:
        raise FormatError(f'{where}: weights names "{(twice or names)[0]}" twice or for two things')
    return Weights(files, found.get("index"))


def to_json(manifest: Manifest) -> str:
    """The text of a `model.json`: every parameter is written, its default too.

    Raises:
      FormatError: the manifest breaks a rule of the format (a name too long, metadata that is not
        JSON), so that nothing is ever written that could not be read.
    """
    fields = dataclasses.asdict(manifest)
    order = ("format_version", "name", "version", "architecture", "parameters", "weights")
    found = {name: fields[name] for name in (*order, "tokenizer", "generation", "metadata")}
    if manifest.weights is None:
        del found["weights"]
    elif manifest.weights.index is None:
        del found["weights"]["index"]
    try:
        text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        raw = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"model.json cannot hold this model's entries: {error}") from error
    parse_manifest(raw)
    return text


def refuse_code(manifest: Manifest, where: str) -> None:
    """Refuses a model that names code outside the format: a part called "package.module:name".

    Opening a model from a stranger must run no code, and a name is enough to import a module.

    Raises:
      FormatError: the model names such a part.
    """
    parts = ("attention", "norm", "mlp")
    values = {f"parameters.{name}": getattr(manifest.parameters, name) for name in parts}
    values["tokenizer.kind"] = str((manifest.tokenizer or {}).get("kind"))
    for path, value in values.items():
        if ":" in value:
            raise FormatError(
                f'{where}: {path} = "{shown(value)}" names code, and opening a model runs none; '
                "pass allow_code=True (--allow-code) if you trust it"
            )
