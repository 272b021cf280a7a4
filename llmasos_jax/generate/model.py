"""The public model: text in, text out, and a look inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.write import write_model
from llmasos_jax.generate.adapters import Adapted, rows_of
from llmasos_jax.generate.chat import chat_ids
from llmasos_jax.generate.loop import Programs
from llmasos_jax.generate.reader import Reader
from llmasos_jax.generate.request import (
    Options,
    chat_requests,
    make_requests,
    read_options,
    read_prompts,
)
from llmasos_jax.generate.session import Request, Session
from llmasos_jax.generate.stream import Decoder
from llmasos_jax.generate.weights import Weights
from llmasos_jax.generate.writer import write


class Model(Reader):
    """A language model with its tokenizer. Made by `load_model` and `init_model`.

    What it reads and answers of a text that is there already is in `Reader`; here it writes.

    Attributes:
      config: the parameters of the model, frozen.
      manifest: all that its `model.json` says.
      tokenizer: text to ids and back; None if the model reads ids only.
      last_seed: the seed of the last text; a fresh one where the caller gave none.
    """

    def __init__(
        self,
        manifest: Manifest,
        weights: Weights,
        tokenizer: Tokenizer | None = None,
        adapters: Mapping[str, Adapted] = MappingProxyType({}),
    ) -> None:
        super().__init__(manifest, weights, tokenizer, adapters)
        self.last_seed: int | None = None

    def generate_text(
        self,
        prompt: str | Sequence[str],
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
        adapter: str | None | Sequence[str | None] = None,
    ) -> Any:
        """Continues a text, or each of a list of texts.

        A text ends after `max_length` new tokens, at an end-of-text token, before a stop string, or
        where the model's context is full. Of an encoder-decoder the encoder reads the prompt, at
        most `context_length` tokens, and the decoder has as many, its first one included.

        Args:
          prompt: what to continue. A list is written together, as one batch.
          max_length: new tokens at most, at least 1.
          temperature: divides the logits; 0 is greedy.
          top_k: draw from the k likeliest tokens only.
          top_p: draw from the likeliest tokens that together have this probability.
          min_p: draw from tokens with at least this share of the likeliest one's probability.
          repetition_penalty: above 1 makes tokens of the prompt and of the text less likely; of an
            encoder-decoder those of the text alone.
          typical_p: draw from the tokens nearest to the expected information that together have
            this probability (Meister et al., 2022, arXiv 2202.00666).
          presence_penalty: is taken from the logits of tokens that the text has already, the prompt
            aside, -2 to 2.
          frequency_penalty: is taken as often as the text has the token, -2 to 2.
          logit_bias: what is added to the logits of tokens, by id, -100 to 100; at most 300.
          stop: one string or several that end the text; not in the result.
          seed: 0 to 2^32 - 1; sample i of a list draws from (seed, i, position) alone. None takes a
            fresh one, logs it (INFO) and keeps it in `last_seed`.
          stream: whether to return an iterator of pieces, never half a character, whose
            concatenation is the text; for a list, of `(index, piece)`.
          echo: whether the prompt stands before the text; not with an encoder-decoder.
          deterministic: whether to use one compiled shape for all: exactly the same text whatever
            else is asked for, and slower.
          adapter: one of `adapters`, that is put beside the weights; None is the model alone, bit
            for bit as if it had none. For a list of texts it may be a list of as many.

        Returns:
          The text, a list of texts for a list, or an iterator if `stream`.

        Raises:
          GenerationError: an argument is out of range, a prompt does not fit the context, or the
            model cannot write.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.generate.load import init_model
          >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
          >>> model = init_model(manifest)
          >>> text = model.generate_text("Hi", max_length=5, seed=0)
          >>> "".join(model.generate_text("Hi", max_length=5, seed=0, stream=True)) == text
          True
        """
        options = read_options(
            max_length,
            temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            typical_p=typical_p,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            stop=stop,
            seed=seed,
            stream=stream,
            echo=echo,
            deterministic=deterministic,
        )
        prompts = read_prompts(prompt)
        self._require_causal()
        tokenizer = self._require_tokenizer()
        requests = make_requests(prompts, options, tokenizer, self.manifest)
        pieces = self._write(requests, options, adapter)
        heads = list(enumerate(prompts)) if echo else []
        if not stream:
            texts = [""] * len(prompts)
            for i, piece in (*heads, *pieces):
                texts[i] += piece
            return texts[0] if isinstance(prompt, str) else texts
        return _stream(heads, pieces, with_index=not isinstance(prompt, str))

    def chat(  # noqa: D417, one line for what is as in generate_text
        self,
        messages: Sequence[Mapping[str, str]],
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
        adapter: str | None = None,
    ) -> Any:
        """Answers a conversation, through the model's chat template.

        The template came with the model; it runs in a sandbox (`data.chat`).

        Args:
          messages: one {"role": ..., "content": ...} after the other; roles are those that the
            template knows, mostly "system", "user" and "assistant".
          max_length, temperature: as in `generate_text`.
          top_k, top_p, min_p, repetition_penalty, typical_p, presence_penalty, frequency_penalty,
            logit_bias, stop, seed, stream, deterministic: as there.
          echo: refused; the messages are no part of the answer.
          adapter: one of `adapters`; the template is the one that it was trained with.

        Returns:
          The text of the answer, or an iterator of its pieces if `stream`.

        Raises:
          GenerationError: the model has no chat template, the template refuses the messages, or an
            argument is out of range.
          MissingExtraError: jinja2 is not installed.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Generation
          >>> from llmasos_jax.generate.load import init_model
          >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }}; {% endfor %}"
          >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"},
          ...                     generation=Generation(chat_template=template))
          >>> model = init_model(manifest)
          >>> text = model.chat([{"role": "user", "content": "Hi"}], max_length=5, seed=0)
          >>> text == model.generate_text("user: Hi; ", max_length=5, seed=0)
          True
        """
        options = read_options(
            max_length,
            temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            typical_p=typical_p,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            stop=stop,
            seed=seed,
            stream=stream,
            echo=echo,
            deterministic=deterministic,
        )
        if options.echo:
            raise GenerationError("chat has no echo: the messages are not part of the answer")
        self._require_causal()
        tokenizer = self._require_tokenizer()
        ids = chat_ids(self.chat_template(adapter), messages, tokenizer, self.manifest.name)
        requests = chat_requests(ids, options, tokenizer, self.manifest)
        pieces = (piece for _, piece in self._write(requests, options, adapter))
        return pieces if options.stream else "".join(pieces)

    def chat_template(self, adapter: str | None = None) -> str | None:
        """What `chat` makes a prompt with, Jinja: an adapter's own, else the model's, if any.

        Raises:
          GenerationError: there is no such adapter.
        """
        chosen = self._chosen(adapter)
        own = None if chosen is None else chosen.chat_template
        return self.manifest.generation.chat_template if own is None else own

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the model as an LLMasOS folder, in one step.

        Weights are written in the type that they had on disk, unless `dtype` was given at loading.

        Args:
          path: a new folder, or a model's folder, which is replaced.

        Raises:
          FormatError: the folder holds something else, or the disk does not take it.
        """
        return write_model(path, self.manifest, self._weights.stored(), self.tokenizer)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text and do not belong to it."""
        tokenizer, eos_ids = self._require_tokenizer(), self.manifest.generation.eos_ids
        if not eos_ids and tokenizer.eos_id is not None:
            return (tokenizer.eos_id,)
        return tuple(eos_ids)

    @property
    def num_ids(self) -> int:
        """Tokens that can be drawn are 0 to num_ids - 1: the tokenizer's, of the vocabulary."""
        return min(self._require_tokenizer().vocab_size, self.config.vocab_size)

    @cached_property
    def session(self) -> Session:
        """The compiled programs of generation and their shapes, of the model alone."""
        return self._new_session(self._weights)

    @cached_property
    def _session_beside(self) -> Session:
        """Those of all adapters, which have one structure."""
        return self._new_session(next(iter(self._adapted.values())).weights)

    def _session_with(self, adapter: str | None) -> Session:
        chosen = self._chosen(adapter)
        return self.session if chosen is None else self._session_beside.on(chosen.weights.params)

    def _new_session(self, weights: Weights) -> Session:
        return Session(
            Programs(weights.definition, weights.runtime, self.num_ids),
            weights.params,
            self.eos_ids,
            self.config.context_length,
            cache_sharding=weights.cache_sharding,
            cache_dtype=weights.runtime.act_dtype,
        )

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self._require_tokenizer())

    def _write(
        self, requests: list[Request], options: Options, adapter: Any = None
    ) -> Iterator[tuple[int, str]]:
        """Pieces of the texts, each with the index of its request; one adapter after the other."""
        options.sampling.require_ids(self.num_ids)
        self.last_seed = options.sampling.seed
        stops = (*options.stop, *self.manifest.generation.stop)
        flags = {"stream": options.stream, "deterministic": options.deterministic}
        groups = rows_of(adapter, len(requests))
        # Now, not when the first piece is asked for: that is where a wrong name should show.
        sessions = [self._session_with(name) for name, _ in groups]
        return (
            (rows[i], piece)
            for session, (_, rows) in zip(sessions, groups, strict=True)
            for i, piece in write(
                session, self._decoder, [requests[row] for row in rows], stops, **flags
            )
        )

    def _require_causal(self) -> None:
        if not self.config.causal:
            raise GenerationError(f"{self!r} reads in both directions and cannot continue a text")


def generate_text(
    model: Model,
    prompt: str | Sequence[str],
    max_length: int = 100,
    temperature: float = 1.0,
    **options: Any,
) -> Any:
    """The same as `model.generate_text(prompt, max_length, temperature, **options)`."""
    return model.generate_text(prompt, max_length, temperature, **options)


def _stream(
    heads: list[tuple[int, str]], pieces: Iterator[tuple[int, str]], *, with_index: bool
) -> Iterator[Any]:
    for i, piece in (pair for part in (heads, pieces) for pair in part):
        if piece:
            yield (i, piece) if with_index else piece
