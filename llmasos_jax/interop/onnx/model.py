"""Whole graphs: a decoder with its cache, a reader of whole texts, an encoder and its decoder.

Names of inputs and outputs are those of optimum and onnxruntime-genai.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.onnx import stack
from llmasos_jax.interop.onnx.attention import (
    Context,
    Past,
    Sizes,
    alibi_penalty,
    distances,
    key_mask,
    relative_bias,
)
from llmasos_jax.interop.onnx.check import is_decoder
from llmasos_jax.interop.onnx.graph import Graph
from llmasos_jax.interop.onnx.parts import turns
from llmasos_jax.models.layout import ENCODER, encoder_config

MODEL, ENCODER_MODEL, DECODER_MODEL = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"
_PAST, _PRESENT = "past_key_values", "present"


@dataclass
class Built:
    """A graph with the types of what goes in and comes out."""

    graph: Graph
    inputs: list[Any]
    outputs: list[Any]


def build(cfg: ModelConfig, tensors: Mapping[str, StoredTensor]) -> dict[str, Built]:
    """The graphs of a model, by their file.

    Args:
      cfg: passed `check_onnx`.
      tensors: the model's; only names, shapes and types are read.
    """
    if cfg.encoder.num_layers:
        return {
            ENCODER_MODEL: _encoder(cfg, Graph(tensors)),
            DECODER_MODEL: _cross_decoder(cfg, Graph(tensors)),
        }
    make = _decoder if is_decoder(cfg) else _reader
    return {MODEL: make(cfg, Graph(tensors))}


def output_names(cfg: ModelConfig) -> dict[str, str]:
    """The name in the graph of each answer of a reader of whole texts.

    Example:
      >>> output_names(ModelConfig(8, 8, 1, causal=False, head="mlm", norm="layernorm"))
      {'logits': 'logits', 'last_hidden_state': 'last_hidden_state', ...}
    """
    scored = {
        "logits": cfg.head is not None,
        "next_sentence": cfg.next_sentence,
        "labels": bool(cfg.classifier.labels),
    }
    there = [name for name, is_there in scored.items() if is_there]
    many = {"logits": "prediction_logits", "next_sentence": "seq_relationship_logits"}
    alone = len(there) == 1
    found = {name: "logits" if alone else many.get(name, "logits") for name in there}
    found["last_hidden_state"] = "last_hidden_state"
    if cfg.pooler:
        found["pooled"] = "pooler_output"
    elif not cfg.causal:
        found["vector"] = "sentence_embedding"
    return found


def uses_positions(cfg: ModelConfig) -> bool:
    """Whether the places of tokens are an input of a decoder."""
    return cfg.position in ("rope", "learned")


def past_names(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The inputs and outputs that hold a layer's keys and values.

    Example:
      >>> past_names(0)[0]
      ('past_key_values.0.key', 'past_key_values.0.value')
    """
    parts = ("key", "value")
    before = tuple(f"{_PAST}.{layer}.{part}" for part in parts)
    after = tuple(f"{_PRESENT}.{layer}.{part}" for part in parts)
    return before, after  # pyright: ignore[reportReturnType]


def _pasts(g: Graph, cfg: ModelConfig) -> tuple[list[Past], list[Any], list[Any]]:
    pasts, inputs, outputs = [], [], []
    for layer in range(cfg.num_layers):
        before, after = past_names(layer)
        pasts.append(before)
        for names, length, found in (
            (before, "past_sequence_length", inputs),
            (after, "total_sequence_length", outputs),
        ):
            for name, width in zip(names, (cfg.head_width, cfg.value_width), strict=True):
                shape = ("batch_size", cfg.kv_heads, length, width)
                found.append(g.value(name, "float32", *shape))
    return pasts, inputs, outputs


def _end(g: Graph, g_now: list[Past]) -> None:
    for layer, now in enumerate(g_now):
        for value, name in zip(now, past_names(layer)[1], strict=True):
            g.name_as(value, name)


def _length(g: Graph, value: str, axis: int = 1) -> str:
    return g.op("Shape", value, start=axis, end=axis + 1)


def _context(
    g: Graph,
    cfg: ModelConfig,
    sizes: Sizes,
    keys: str | None,
    positions: str | None,
    mask: str | None,
    prefix: str = "",
) -> Context:
    g.stem = f"{prefix}context"
    back = distances(g, sizes)
    context = Context(sizes, back, keys, turns(g, cfg, positions or "", mask))
    if cfg.position == "relative":
        context.bias = relative_bias(g, cfg, back, f"{prefix}relative")
    if cfg.position == "alibi":
        context.far = alibi_penalty(g, cfg, back)
    return context


def _counted(g: Graph, mask: str) -> str:
    """The place of each token among those of its row, from an attention mask; int64 [B, T]."""
    so_far = g.op("CumSum", mask, g.constant(1, np.int64))
    one, zero = g.constant(1, np.int64), g.constant(0, np.int64)
    return g.op("Max", g.op("Sub", so_far, one), zero)


def _decoder(cfg: ModelConfig, g: Graph) -> Built:
    tokens, mask = "input_ids", "attention_mask"
    row = ("batch_size", "sequence_length")
    inputs = [
        g.value(tokens, "int64", *row),
        g.value(mask, "int64", "batch_size", "total_sequence_length"),
    ]
    positions = None
    if uses_positions(cfg):
        positions = "position_ids"
        inputs.append(g.value(positions, "int64", *row))
    sizes = Sizes(_length(g, tokens), _length(g, mask))
    # The last T of the mask are the tokens that come now.
    past = g.op("Sub", sizes.keys, sizes.tokens)
    new_mask = g.op("Slice", mask, past, sizes.keys, g.ints(1))
    pasts, more_inputs, kept = _pasts(g, cfg)
    x = stack.embed(g, cfg, tokens, positions, None)
    context = _context(g, cfg, sizes, key_mask(g, mask), positions, new_mask)
    x, now = stack.run(g, cfg, x, context, pasts)
    g.name_as(stack.logits(g, cfg, x), "logits")
    _end(g, now)
    scores = g.value("logits", "float32", *row, cfg.vocab_size)
    return Built(g, inputs + more_inputs, [scores, *kept])


def _reader(cfg: ModelConfig, g: Graph) -> Built:
    tokens, mask = "input_ids", "attention_mask"
    row = ("batch_size", "sequence_length")
    inputs = [g.value(tokens, "int64", *row), g.value(mask, "int64", *row)]
    types = "token_type_ids" if cfg.token_types else None
    if types:
        inputs.append(g.value(types, "int64", *row))
    length = _length(g, tokens)
    positions = _counted(g, mask)
    x = stack.embed(g, cfg, tokens, positions, types)
    context = _context(g, cfg, Sizes(length, length), key_mask(g, mask), positions, mask)
    x, _ = stack.run(g, cfg, x, context, None)
    names, outputs, d = output_names(cfg), [], cfg.embedding_dim

    def give(name: str, value: str, *shape: int | str) -> None:
        g.name_as(value, names[name])
        outputs.append(g.value(names[name], "float32", "batch_size", *shape))

    if cfg.head is not None:
        give("logits", stack.logits(g, cfg, x), row[1], cfg.vocab_size)
    text = stack.pooled(g, cfg, x, mask)
    if cfg.next_sentence:
        give("next_sentence", stack.scores(g, cfg, text, "next_sentence", 2), 2)
    if num := len(cfg.classifier.labels):
        is_text = cfg.classifier.level == "sequence"
        found = stack.scores(g, cfg, text if is_text else x, "classifier", num)
        give("labels", found, *(() if is_text else row[1:]), num)
    give("last_hidden_state", x, row[1], d)
    if cfg.pooler:
        give("pooled", text, d)
    elif not cfg.causal:
        give("vector", stack.unit(g, text), d)
    return Built(g, inputs, outputs)


def _encoder(cfg: ModelConfig, g: Graph) -> Built:
    own, tokens, mask = encoder_config(cfg), "input_ids", "attention_mask"
    row = ("batch_size", "encoder_sequence_length")
    length = _length(g, tokens)
    positions = _counted(g, mask)
    x = stack.embed(g, own, tokens, positions, None)
    prefix = f"{ENCODER}."
    sizes = Sizes(length, length)
    context = _context(g, own, sizes, key_mask(g, mask), positions, mask, prefix)
    x, _ = stack.run(g, own, x, context, None, prefix=prefix)
    g.name_as(x, "last_hidden_state")
    return Built(
        g,
        [g.value(tokens, "int64", *row), g.value(mask, "int64", *row)],
        [g.value("last_hidden_state", "float32", *row, cfg.embedding_dim)],
    )


def _cross_decoder(cfg: ModelConfig, g: Graph) -> Built:
    tokens, mask, states = "input_ids", "encoder_attention_mask", "encoder_hidden_states"
    row = ("batch_size", "sequence_length")
    far_row = ("batch_size", "encoder_sequence_length")
    pasts, more_inputs, kept = _pasts(g, cfg)
    length = _length(g, tokens)
    past = _length(g, pasts[0][0], 2)
    sizes = Sizes(length, g.op("Add", past, length))
    inputs = [
        g.value(tokens, "int64", *row),
        g.value(mask, "int64", *far_row),
        g.value(states, "float32", *far_row, cfg.embedding_dim),
    ]
    places = [g.op("Squeeze", x, g.ints(0)) for x in (past, sizes.keys)]
    place = g.op("Range", *places, g.constant(1, np.int64))
    positions = g.op("Unsqueeze", place, g.ints(0))
    x = stack.embed(g, cfg, tokens, positions, None)
    context = _context(g, cfg, sizes, None, positions, None)
    cross = Context(Sizes(length, _length(g, mask)), "", key_mask(g, mask), {})
    x, now = stack.run(g, cfg, x, context, pasts, cross=(states, cross))
    g.name_as(stack.logits(g, cfg, x), "logits")
    _end(g, now)
    scores = g.value("logits", "float32", *row, cfg.vocab_size)
    return Built(g, inputs + more_inputs, [scores, *kept])
