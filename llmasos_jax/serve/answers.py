"""From the engine's pieces to the bodies of answers, whole or streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from llmasos_jax import __version__
from llmasos_jax.engine.request import Piece, TokenLogprob
from llmasos_jax.serve.asks import Job
from llmasos_jax.serve.failures import body_of, refusal_of
from llmasos_jax.serve.texts import Texts

Decode = Callable[[list[int]], str]


@dataclass
class Written:
    """One text, as far as it has come."""

    text: str = ""
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Takes its next piece."""
        self.text += piece.text
        self.num_tokens += len(piece.ids)
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish


@dataclass
class Answerer:
    """Makes the bodies of one request's answer.

    Attributes:
      job: its texts.
      model_name: what the model is called.
      is_chat: which of the two shapes.
      decode: the text of ids.
    """

    job: Job
    model_name: str
    is_chat: bool
    decode: Decode

    def __post_init__(self) -> None:
        kind = "chatcmpl" if self.is_chat else "cmpl"
        self._id = f"{kind}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._written = [Written() for _ in self.job.asks]

    async def whole(self, texts: Texts) -> dict[str, Any]:
        """The whole answer."""
        async for index, piece in texts.pieces():
            self._written[index].add(piece)
        choices = []
        for index, written in enumerate(self._written):
            text = self.job.heads[index] + written.text
            choice: dict[str, Any] = {"index": index, "finish_reason": written.finish}
            if self.is_chat:
                choice["message"] = {"role": "assistant", "content": text}
            else:
                choice["text"] = text
            choice["logprobs"] = self._logprobs(index, written.logprobs, 0)
            choices.append(choice)
        name = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(name, texts), "choices": choices, "usage": self._usage(texts)}

    async def stream(self, texts: Texts) -> AsyncIterator[str]:
        """The same as events; a failure on the way is an event too."""
        name = "chat.completion.chunk" if self.is_chat else "text_completion"
        is_begun = [False] * len(self._written)
        try:
            async for index, piece in texts.pieces():
                if not (piece.text or piece.ids or piece.finish):
                    continue
                text = piece.text if is_begun[index] else self.job.heads[index] + piece.text
                choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish}
                offset = len(self._written[index].text)
                if self.is_chat:
                    delta: dict[str, Any] = {"content": text}
                    choice["delta"] = delta if is_begun[index] else {"role": "assistant", **delta}
                else:
                    choice["text"] = text
                choice["logprobs"] = self._logprobs(index, list(piece.logprobs), offset)
                is_begun[index] = True
                self._written[index].add(piece)
                yield _event({**self._head(name, texts), "choices": [choice]})
            if self.job.tells_usage:
                usage = {"choices": [], "usage": self._usage(texts)}
                yield _event({**self._head(name, texts), **usage})
            yield "data: [DONE]\n\n"
        except Exception as error:
            refusal = refusal_of(error)
            yield _event(body_of(refusal.status, refusal.message, code=refusal.code))

    def _head(self, name: str, texts: Texts) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": name,
            "created": self._created,
            "model": self.model_name,
            # What, with the request and the seed, decides every bit of a text.
            "system_fingerprint": f"llmasos-{__version__}-b{texts.batch_size}",
            "seed": self.job.seed,
        }

    def _usage(self, texts: Texts) -> dict[str, Any]:
        # A prompt counts once, however many samples are drawn.
        num_samples = self.job.num_samples
        prompt = sum(len(ask.ids) for ask in self.job.asks[::num_samples])
        drawn = sum(written.num_tokens for written in self._written)
        cached = sum(ticket.num_cached for ticket in texts.tickets[::num_samples])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": drawn,
            "total_tokens": prompt + drawn,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _logprobs(self, index: int, told: list[TokenLogprob], offset: int) -> dict[str, Any] | None:
        if self.job.asks[index].num_logprobs is None:
            return None
        if self.is_chat:
            return {"content": [self._chat_token(entry) for entry in told], "refusal": None}
        texts = [self.decode([entry.id]) for entry in told]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in told],
            "top_logprobs": [
                {self.decode([token]): logprob for token, logprob in entry.top} for entry in told
            ],
            "text_offset": offsets,
        }

    def _chat_token(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return {**self._token(entry.id, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.decode([token])
        # A part of a character has no text of its own.
        is_whole = "\ufffd" not in text
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if is_whole else None,
        }


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
