"""Token ids to text, piece by piece: no broken character, nothing of a stop string.

The pieces' concatenation is exactly `decode` of all ids (behind the prompt), up to a stop string.
The work is linear: a window of ids that are not settled yet is decoded, and shrinks as soon as its
text cannot change any more. Three properties of real tokenizers make this more than `decode(one
id)`:

    bytes, byte-level BPE    one character may be several tokens: the last U+FFFD may yet become
                             a character
    byte fallback (Llama)    a run of byte tokens is decoded as a whole; in `tokenizers` one bad
                             byte spoils all of it
    sentencepiece            the first piece of a text loses its leading space: a window is
                             decoded behind an anchor
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what decoders put for bytes that are no character (yet)
# A character is at most 4 bytes, so one that begins before the last 3 tokens is complete or never
# will be.
LONGEST_TAIL = 3


class Decoder:
    """What has to be known about a tokenizer to decode its ids in pieces; make one per tokenizer.

    Attributes:
      tokenizer: anything with `encode` and `decode`.
      anchor: ids of a plain letter, decoded in front of a window so that its spaces stay.
      bad_byte: an id that, put behind a byte token, changes what that one reads as; None where a
        token's text does not depend on what follows (all but byte fallback in `tokenizers`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.anchor = list(tokenizer.encode("a"))
        text = tokenizer.decode(self.anchor)
        if not text.strip() or BROKEN in text:
            self.anchor, text = [], ""
        self._anchor_chars = len(text)
        # A private-use character: no vocabulary has it whole, so it shows the byte tokens, if any.
        rare = [i for i in tokenizer.encode("\U0010fffd") if BROKEN in self.behind_anchor([i])]
        spoilt = rare and not self.behind_anchor(rare + rare[:1]).startswith(
            self.behind_anchor(rare)
        )
        self.bad_byte = rare[0] if spoilt else None
        self._in_run: dict[int, bool] = {}

    def behind_anchor(self, ids: Sequence[int]) -> str:
        """The text of ids that stand inside a text."""
        return self.tokenizer.decode([*self.anchor, *ids])[self._anchor_chars :]

    def is_in_run(self, token: int) -> bool:
        """Whether bytes behind this token would change its text."""
        if self.bad_byte is None:
            return False
        if token not in self._in_run:
            alone, spoilt = (self.behind_anchor(ids) for ids in ([token], [token, self.bad_byte]))
            self._in_run[token] = BROKEN in alone or not spoilt.startswith(alone)
        return self._in_run[token]


class TextStream:
    """The text of one sequence, growing.

    Args:
      decoder: of the tokenizer.
      prompt_ids: what stands before; its text is not in the pieces.
      stop: strings that end the text. The one that is complete first ends it (of several, the one
        that began first), and it is not in the pieces.

    Example:
      >>> from llmasos_jax.data.tokenizers.load import load_tokenizer
      >>> stream = TextStream(Decoder(load_tokenizer({"kind": "bytes"}, None)), stop=["!"])
      >>> [stream.push([i]) for i in "你a!b".encode()]
      ['', '', '你', 'a', '', '']
      >>> stream.is_stopped
      True
    """

    def __init__(
        self, decoder: Decoder, prompt_ids: Sequence[int] = (), stop: Sequence[str] = ()
    ) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""  # text that could be the beginning of a stop string
        self.is_stopped = False
        before = decoder.tokenizer.decode(list(prompt_ids)) if prompt_ids else ""
        # Inside a text a window stands behind the anchor. At a text's beginning it does not, and
        # keeps all ids until they have text, because that is where tokenizers drop leading spaces.
        self._is_inside = bool(before.strip()) and bool(decoder.anchor)
        self._window: list[int] = [] if self._is_inside else list(prompt_ids)
        self._given = 0 if self._is_inside else len(before)  # characters of the window that are out

    def push(self, ids: Sequence[int]) -> str:
        """Takes more ids; returns the text that they settle, maybe empty."""
        if self.is_stopped:
            return ""
        self._window.extend(ids)
        return self._release(self._settled(), is_last=False)

    def finish(self) -> str:
        """The rest of the text: no more ids come."""
        if self.is_stopped:
            return ""
        text = self._decode(self._window)[self._given :] if self._window else ""
        self._window = []
        return self._release(text, is_last=True)

    def _settled(self) -> str:
        """The text in the window that no further id can change, less what is out already."""
        window = self._window
        if self._decoder.bad_byte is not None:
            ends = range(len(window), 0, -1)
            num = next((i for i in ends if not self._decoder.is_in_run(window[i - 1])), 0)
            return self._take(num, self._decode(window[:num])) if num else ""
        text = self._decode(window)
        if not text.endswith(BROKEN):
            return self._take(len(window), text)
        cut = self._boundary(text)
        piece = self._take(cut, self._decode(window[:cut])) if cut else ""
        # What stands before the broken end is settled too, though its tokens reach into that end.
        rest = self._decode(self._window)
        settled = len(rest.rstrip(BROKEN))
        if settled > self._given:
            piece, self._given = piece + rest[self._given : settled], settled
        return piece

    def _boundary(self, text: str) -> int:
        """How many ids can be cut off: whole characters, nothing undecided."""
        window, num = self._window, len(self._window)
        for cut in range(num - 1, max(num - 1 - LONGEST_TAIL, 0), -1):
            if not self._decode(window[:cut]).endswith(BROKEN):
                return cut
        # Bytes that are no text at all: cut where both sides read as they do together.
        for cut in range(num - LONGEST_TAIL, max(num - 3 * LONGEST_TAIL, 0), -1):
            left = self._decode(window[:cut])
            if text == left + self._decoder.behind_anchor(window[cut:]):
                return cut
        return 0

    def _decode(self, ids: Sequence[int]) -> str:
        decode = self._decoder.behind_anchor if self._is_inside else self._decoder.tokenizer.decode
        return decode(ids)

    def _take(self, num: int, text: str) -> str:
        """Gives out the rest of `text`, which the window's first `num` ids are, and drops them."""
        piece = text[self._given :]
        if not self._is_inside and not (text.strip() and self._decoder.anchor):
            self._given = len(text)
        else:
            self._window = self._window[num:]
            self._given, self._is_inside = 0, True
        return piece

    def _release(self, text: str, *, is_last: bool) -> str:
        text = self._held + text
        ends = [(at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0]
        if ends:
            self.is_stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        hold = 0 if is_last else _overlap(text, self._stop)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    longest = min(max((len(s) - 1 for s in stop), default=0), len(text))
    ends = (text[len(text) - n :] for n in range(longest, 0, -1))
    return next((len(end) for end in ends if any(s.startswith(end) for s in stop)), 0)
