"""Constrained output: which tokens may come next, so that a text follows a schema or a pattern.

A `Guide` says what a text has to be; `guides_of(model).start(guide)` makes of it, for one text,
what the engine asks at each step. The llguidance library follows the grammar byte by byte, and
looks up in a tree of the vocabulary which tokens go on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.guide import Guide as Guide
from llmasos_jax.generate.guide import library, line, refused
from llmasos_jax.generate.tokenbytes import TokenBytes, token_bytes

if TYPE_CHECKING:
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
    from llmasos_jax.generate.model import Model

_NUM_KEPT = 64  # compiled grammars of a model


class Guides:
    """The guides of one model: its vocabulary, as the library wants it. Takes up to a second.

    Args:
      tokenizer: of the model.
      num_ids: ids that can be drawn are 0 to num_ids - 1; at most the tokenizer has.
      eos_ids: those that end a text.

    Raises:
      GenerationError: the bytes of the tokens cannot be known (see `tokenbytes`).
      MissingExtraError: llguidance is not installed.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> guides = Guides(ByteTokenizer(), 259, (257,))
      >>> text = guides.start(Guide.choice(["yes", "no"]))
      >>> text.allowed()[3].item() == 1 << ord("y") - 96 | 1 << ord("n") - 96
      True
      >>> for byte in b"yes":
      ...     text.take(byte)
      >>> text.is_done
      True
    """

    def __init__(self, tokenizer: Tokenizer, num_ids: int, eos_ids: Sequence[int]) -> None:
        self._library = library()
        self.eos_ids = tuple(i for i in eos_ids if 0 <= i < num_ids)
        self.bytes = token_bytes(tokenizer, num_ids, self.eos_ids)
        self.start_mask = _mask(np.flatnonzero(self.bytes.keeps_start_v), num_ids)
        self.eos_mask = _mask(self.eos_ids, num_ids)
        self._vocabulary = self._library.LLTokenizer(_Words(self.bytes))
        self._compiled: dict[str, Any] = {}
        self._lock = threading.Lock()

    def start(self, guide: Guide, prompt_ids: Sequence[int] = ()) -> TextConstraint:
        """The state of one text.

        Args:
          guide: what it has to be.
          prompt_ids: what stands before it; some tokenizers drop a space at the very beginning.

        Raises:
          GenerationError: no token of this vocabulary can begin such a text, or the grammar is too
            large.
        """
        decoder = self.bytes.decoder
        is_first = not decoder.tokenizer.decode(list(prompt_ids)).strip()
        state = TextConstraint(self, guide, self._matcher(guide), is_first=is_first)
        state.allowed()  # what cannot begin is refused here, not by the engine
        return state

    def _matcher(self, guide: Guide) -> Any:
        with self._lock:
            compiled = self._compiled.pop(guide.grammar, None)
            if compiled is None:
                compiled = self._library.LLMatcher(self._vocabulary, guide.grammar, log_level=0)
                if compiled.is_error():
                    raise refused(guide.what, compiled.get_error())
            self._compiled[guide.grammar] = compiled  # at the end: the first is the oldest
            while len(self._compiled) > _NUM_KEPT:
                del self._compiled[next(iter(self._compiled))]
            return compiled.deep_copy()


class TextConstraint:
    """What may come next in one text (an `engine.request.Constraint`); made by `Guides.start`."""

    def __init__(self, guides: Guides, guide: Guide, matcher: Any, *, is_first: bool) -> None:
        self._guides, self._guide, self._matcher = guides, guide, matcher
        self._is_first = is_first  # whether nothing stands before the text
        self._taken = 0
        self._has_ended = self._is_whole = False
        num_ids = len(guides.bytes.of_id)
        self._num_words = -(-num_ids // 32)
        # The library's vocabulary has one id more, which stands for all that end a text.
        self._end = num_ids
        self._mask = np.zeros(num_ids // 32 + 1, np.uint32)

    def allowed(self) -> np.ndarray:
        """Which ids may come next: bit i of word w is id 32 w + i, uint32 [V / 32 rounded up].

        Raises:
          GenerationError: none may: no text is like this, or the vocabulary lacks bytes for it; or
            the grammar is too large.
        """
        if self._has_ended:
            return np.zeros(self._num_words, np.uint32)
        mask, (word, bit) = self._mask, divmod(self._end, 32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise self._stuck(line(self._matcher.get_error()))
        may_end = bool(mask[word] >> bit & 1) and self._matcher.is_accepting()
        mask[word] &= ~np.uint32(1 << bit)
        allowed = mask[: self._num_words].copy()
        if self._is_first and not self._taken:
            allowed &= self._guides.start_mask
        if not allowed.any():
            if not may_end:
                raise self._stuck("no token goes on")
            self._is_whole = True
        return allowed | self._guides.eos_mask if may_end else allowed

    def take(self, token: int) -> None:
        """The id that came.

        Raises:
          GenerationError: it may not come here.
        """
        if token in self._guides.eos_ids and self._matcher.is_accepting() and not self._has_ended:
            self._has_ended = True
            return
        is_text = 0 <= token < self._end and bool(self._guides.bytes.of_id[token])
        if self._has_ended or not is_text or not self._matcher.consume_token(int(token)):
            raise GenerationError(
                f"the id {token} may not come next in {self._guide.what}; draw one that is allowed"
            )
        self._taken += 1

    def go_back(self, num: int) -> None:
        """Forgets the last `num` ids, as if they had not come: proposals that were not accepted.

        Raises:
          GenerationError: fewer came.
        """
        num_ended = int(self._has_ended and num > 0)
        if not 0 <= num <= self._taken + num_ended:
            raise GenerationError(
                f"{self._taken} ids came, and {num} are to be forgotten; give less"
            )
        if num > num_ended:
            self._matcher.rollback(num - num_ended)
        self._taken -= num - num_ended
        self._has_ended, self._is_whole = self._has_ended and not num, self._is_whole and not num

    @property
    def is_done(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        is_whole = self._is_whole or (self._matcher.is_stopped() and self._matcher.is_accepting())
        return self._has_ended or is_whole

    def _stuck(self, reason: str) -> GenerationError:
        if reason.startswith("NoExtension"):
            reason = "no token goes on"
        return GenerationError(
            f"{self._guide.what} cannot be written ({reason}): no text is like this, or none of "
            "this tokenizer's; change it"
        )


class _Words:
    """What the library asks of a tokenizer; an id more than there are stands for the end."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, words: TokenBytes) -> None:
        # 0xFF is in no UTF-8 text, and it is the library's mark of a special token.
        text = [b"" if raw[:1] == b"\xff" else raw for raw in words.of_id]
        self.tokens = [*text, b"\xff<end>"]
        self.eos_token_id = len(text)
        self.special_token_ids = [self.eos_token_id]
        self._words = words

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of what has to come, which are then the only ones allowed: in the model's own cut.

        The end where there are none: it is then allowed before its time, which is an error.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        found = self._words.ids(text)
        return [self.eos_token_id] if found is None else found


_GUIDES: weakref.WeakKeyDictionary[Model, Guides] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def guides_of(model: Model) -> Guides:
    """The guides of a model, made once.

    Raises:
      GenerationError: the model has no tokenizer, or one whose tokens' bytes cannot be known.
      MissingExtraError: llguidance is not installed.
    """
    with _LOCK:
        if model not in _GUIDES:
            tokenizer = model.tokenizer
            if tokenizer is None:
                raise GenerationError(
                    f"{model!r} has no tokenizer, and constrained output follows text"
                )
            _GUIDES[model] = Guides(tokenizer, model.num_ids, model.eos_ids)
        return _GUIDES[model]


def _mask(ids: Sequence[int] | np.ndarray, num_ids: int) -> np.ndarray:
    """Bits of these ids, uint32 [num_ids / 32 rounded up]."""
    bits = np.zeros(-(-num_ids // 32) * 32, bool)
    bits[np.asarray(ids, np.int64)] = True
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
