"""Checks what a caller asks for, before anything runs."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.sampling import Sampling, require_whole
from llmasos_jax.generate.session import Request

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The arguments of `Model.generate_text` but the prompt, checked.

    Attributes:
      max_length: new tokens at most, of each text.
      sampling: how each is drawn, but for its index.
      stop: strings that end a text.
      stream, echo, deterministic: as in `Model.generate_text`.
    """

    max_length: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    echo: bool
    deterministic: bool


def read_options(
    max_length: int = 100,
    temperature: float = 1.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    typical_p: float | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    stream: bool = False,
    echo: bool = False,
    deterministic: bool = False,
) -> Options:
    """Checks the arguments of `Model.generate_text`.

    Raises:
      GenerationError: one is of the wrong kind or out of range.
    """
    require_whole("max_length", max_length, 1, " new tokens")
    for name, flag in (("stream", stream), ("echo", echo), ("deterministic", deterministic)):
        if not isinstance(flag, bool):
            raise GenerationError(f"{name}={flag!r} is not possible; give True or False")
    is_fresh = seed is None
    seed = secrets.randbits(32) if seed is None else seed
    if logit_bias is not None and not isinstance(logit_bias, Mapping):
        raise GenerationError(
            f"logit_bias={logit_bias!r:.80} is not possible; give biases by id, {{42: -100}}"
        )
    sampling = Sampling(
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        seed,
        typical_p=typical_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=tuple((logit_bias or {}).items()),
    )
    options = Options(int(max_length), sampling, _stops(stop), stream, echo, deterministic)
    if is_fresh and sampling.temperature != 0:
        _LOG.info("seed=%d (give it again to get the same text)", seed)
    return options


def read_prompts(prompt: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
      GenerationError: not a text, nor a list of at least one.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise GenerationError(
            f"prompt is a {type(prompt).__name__}; give a text, or a list of texts"
        )
    if not prompts:
        raise GenerationError("prompt is an empty list; give at least one text")
    for i, text in enumerate(prompts):
        if not isinstance(text, str):
            raise GenerationError(f"prompt[{i}] is a {type(text).__name__}; give a text")
    return list(prompts)


def make_requests(
    prompts: Sequence[str], options: Options, tokenizer: Tokenizer, manifest: Manifest
) -> list[Request]:
    """Turns prompts into requests; text i draws from (seed, i, position).

    Raises:
      GenerationError: a prompt has no tokens, or leaves no room in the context; or `echo` with an
        encoder-decoder, whose text does not begin with its prompt.
    """
    if manifest.parameters.encoder.num_layers:
        if options.echo:
            raise GenerationError(
                "echo=True puts the prompt before the text that continues it, and an encoder-"
                "decoder's text is another one; leave out echo"
            )
        sources = [encode_input(tokenizer, text)[0] for text in prompts]
        return requests_with_source(sources, options, manifest)
    prompt_ids = []
    for i, text in enumerate(prompts):
        ids = tokenizer.encode(text)
        if not ids:
            begin = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            if begin is None:
                raise GenerationError(
                    f"prompt {i} ({text!r}) has no tokens, and the tokenizer has no token that "
                    "begins a text; give at least one character"
                )
            ids = [begin]
        prompt_ids.append(ids)
    return requests_of(prompt_ids, options, manifest.parameters.context_length)


def chat_requests(
    ids: list[int], options: Options, tokenizer: Tokenizer, manifest: Manifest
) -> list[Request]:
    """Makes the request of a conversation, of the ids that its template gives.

    Raises:
      GenerationError: it is too long.
    """
    cfg = manifest.parameters
    if not cfg.encoder.num_layers:
        return requests_of([ids], options, cfg.context_length)
    # Templates write what stands between messages; an encoder wants an end behind the last too.
    end = [] if tokenizer.eos_id in (None, ids[-1]) else [tokenizer.eos_id]
    return requests_with_source([[*ids, *end]], options, manifest)


def requests_with_source(
    sources: Sequence[list[int]], options: Options, manifest: Manifest
) -> list[Request]:
    """Makes requests to an encoder-decoder; request i draws from (seed, i, position).

    Its positions have no end, so `context_length`, what it was trained on, bounds each side: the
    tokens that the encoder reads, and those of the decoder, the one that it starts with included.

    Args:
      sources: ids that the encoder reads of each text.
      options: of all texts.
      manifest: the model.

    Raises:
      GenerationError: a text has no tokens or too many, or the model does not say what its decoder
        starts with.
    """
    start_id = manifest.generation.decoder_start_id
    if start_id is None:
        raise GenerationError(
            f'model "{manifest.name}" does not say what its decoder starts with; put '
            '"decoder_start_id" into "generation" of its model.json (0 in T5)'
        )
    most = manifest.parameters.context_length
    requests = []
    for i, ids in enumerate(sources):
        if not 0 < len(ids) <= most:
            raise GenerationError(
                f"prompt {i} has {len(ids)} tokens with those that the tokenizer adds; the encoder "
                f"reads 1 to {most} (context_length). Give it a text of so many"
            )
        max_new = min(options.max_length, most - 1)
        requests.append(Request([start_id], max_new, options.sampling.at_index(i), ids))
    return requests


def requests_of(
    prompt_ids: Sequence[list[int]], options: Options, context_length: int
) -> list[Request]:
    """Makes requests of ids, at least one each; request i draws from (seed, i, position).

    Raises:
      GenerationError: a prompt leaves no room in the context.
    """
    requests = []
    for i, ids in enumerate(prompt_ids):
        room = context_length - len(ids)
        if room < 1:
            raise GenerationError(
                f"prompt {i} has {len(ids)} tokens; the model's context holds {context_length}, "
                f"the new ones included. Shorten it to at most {context_length - 1} tokens"
            )
        sampling = options.sampling.at_index(i)
        requests.append(Request(ids, min(options.max_length, room), sampling))
    return requests


def _stops(stop: Any) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)):
        raise GenerationError(
            f"stop={stop!r} is not possible; give a text, a list of texts or None"
        )
    for text in stops:
        if not isinstance(text, str) or not text:
            raise GenerationError(f"stop has {text!r} in it; each must be a text that is not empty")
    return tuple(stops)
