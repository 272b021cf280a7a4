"""Conversations as ids, each with a mark of whether it is learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.chat.spans import Written, write
from llmasos_jax.data.chat.template import ends_of
from llmasos_jax.data.files import build_folder
from llmasos_jax.data.records.shapes import Dialogue
from llmasos_jax.data.tokenizers.spans import SpanIds, encode_spans
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.errors import DataError, TokenizerError
from llmasos_jax.progress import Progress

_BATCH = 256  # conversations encoded at a time
_VERSION = 2  # of the files in the cache, and of how conversations become ids
_ARRAYS = ("ids", "is_scored", "offsets", "is_shared")


@dataclass(frozen=True)
class Scored:
    """A conversation as the model reads it.

    Attributes:
      ids: int32 [tokens].
      is_scored: bool [tokens]: the assistant's words and what ends them. The first id of a text is
        never one: nothing stands before it.
      where: the record's place, for messages.
      is_shared: whether a token has text of the prompt and of an answer; it is not scored.
    """

    ids: np.ndarray
    is_scored: np.ndarray
    where: str
    is_shared: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def last(self, count: int) -> Scored:
        """The last so many tokens."""
        is_scored = self.is_scored[-count:].copy()
        is_scored[:1] = False
        return Scored(self.ids[-count:], is_scored, self.where, self.is_shared)


def cached_dialogues(
    dialogues: Sequence[Dialogue],
    tokenizer: Tokenizer,
    cfg: Config,
    cache: Path,
    *,
    last_only: bool = False,
) -> list[Scored]:
    """`encode_dialogues`, or what it gave for the same conversations before.

    Args:
      dialogues: what to encode.
      tokenizer: the model's.
      cfg: as there.
      cache: folder for the ids.
      last_only: as there.

    Raises:
      DataError: as there, or the cache is damaged.
    """
    settings = (_VERSION, fingerprint(tokenizer), cfg.model.vocab_size, last_only)
    digest = hashlib.sha256(repr((*settings, cfg.finetune.chat_template)).encode())
    for dialogue in dialogues:
        digest.update(json.dumps([dialogue.messages, dialogue.is_plain]).encode())
    folder = cache / f"records-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        found = encode_dialogues(dialogues, tokenizer, cfg, last_only=last_only)
        build_folder(folder, lambda path: _write(path, found))
        return found
    try:
        with np.load(folder / "ids.npz", allow_pickle=False) as file:
            ids, is_scored, offsets, is_shared = (file[name] for name in _ARRAYS)
        parts = zip(
            dialogues,
            np.split(ids, offsets[1:-1]),
            np.split(is_scored, offsets[1:-1]),
            is_shared.tolist(),
            strict=True,
        )
        return [Scored(own, marks, d.where, shared) for d, own, marks, shared in parts]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"cached ids in {folder} are damaged ({error}); delete it") from error


def _write(folder: Path, found: Sequence[Scored]) -> None:
    arrays = (
        np.concatenate([text.ids for text in found]),
        np.concatenate([text.is_scored for text in found]),
        np.cumsum([0, *(len(text) for text in found)]),
        np.array([text.is_shared for text in found]),
    )
    np.savez(folder / "ids.npz", **dict(zip(_ARRAYS, arrays, strict=True)))


def encode_dialogues(
    dialogues: Sequence[Dialogue], tokenizer: Tokenizer, cfg: Config, *, last_only: bool = False
) -> list[Scored]:
    """Encodes conversations, in their order.

    With a template (`finetune.chat_template`) the ids are those of the whole text that it writes,
    as for `Model.chat`. Without one a prompt and its answer stand one after the other, with the
    tokenizer's bos, if it adds one, in front, and eos, if it has one, behind.

    Args:
      dialogues: what to encode.
      tokenizer: the model's.
      cfg: `finetune.chat_template` and `model.vocab_size` are read.
      last_only: whether the last message alone is learned, not every one of the assistant.

    Raises:
      DataError: the template does not take a conversation, there is none and one is needed, or
        nothing of a conversation could be learned; says where.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.data.records.read import Record
      >>> from llmasos_jax.data.records.shapes import dialogues
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> read = dialogues([Record({"prompt": "a", "completion": "b"}, "x.jsonl:1")])
      >>> found = encode_dialogues(read, ByteTokenizer(), Config(ModelConfig(259, 8, 1)))[0]
      >>> found.ids.tolist(), found.is_scored.tolist()
      ([256, 97, 98, 257], [False, False, True, True])
    """
    template = cfg.finetune.chat_template
    special = vocabulary_of(tokenizer, cfg.model.vocab_size).special_ids
    if template is None:
        compose = _plain
    else:
        compose = _by_template(template, tokenizer, special)
    scored: list[Scored] = []
    with Progress("Tokenising", total=len(dialogues)) as progress:
        for start in range(0, len(dialogues), _BATCH):
            batch = dialogues[start : start + _BATCH]
            texts = [compose(dialogue) for dialogue in batch]
            spans = [written.spans[-1:] if last_only else written.spans for written in texts]
            found = encode_spans(tokenizer, [written.text for written in texts], spans)
            for dialogue, ids in zip(batch, found, strict=True):
                scored.append(_scored(dialogue, ids, tokenizer, is_plain=template is None))
            progress.advance(len(batch))
    return scored


def _by_template(
    template: str, tokenizer: Tokenizer, special: Sequence[int]
) -> Callable[[Dialogue], Written]:
    token: Callable[[int], str | None] = getattr(tokenizer, "token", lambda number: None)
    marks = tuple(text for i in special if i < tokenizer.vocab_size and (text := token(i)))
    ends = ends_of(tokenizer)

    def compose(dialogue: Dialogue) -> Written:
        try:
            return write(template, dialogue.messages, marks=marks, **ends)
        except DataError as error:
            raise DataError(f"{dialogue.where}: {error}") from error

    return compose


def _plain(dialogue: Dialogue) -> Written:
    if not dialogue.is_plain:
        raise DataError(
            f"{dialogue.where}: a conversation needs a chat template to become a text, and there "
            'is none; set finetune.chat_template, or write records of {"prompt", "completion"}'
        )
    prompt, answer = (message["content"] for message in dialogue.messages)
    return Written(prompt + answer, ((len(prompt), len(prompt) + len(answer)),))


def _scored(dialogue: Dialogue, found: SpanIds, tokenizer: Tokenizer, *, is_plain: bool) -> Scored:
    before, after = [], []
    if is_plain:
        adds_bos = tokenizer.adds_bos and hasattr(tokenizer, "encode_marked")
        before = [tokenizer.bos_id] if adds_bos else []
        after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    ids = np.array([*before, *found.ids, *after], dtype=np.int32)
    is_scored = np.concatenate(
        [np.zeros(len(before), bool), found.is_inside, np.ones(len(after), bool)]
    )
    is_scored[:1] = False
    if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise TokenizerError(
            f"{dialogue.where}: the tokenizer gave an id outside of 0 to {tokenizer.vocab_size - 1}"
            "; correct the tokenizer"
        )
    if not is_scored.any():
        raise DataError(
            f"{dialogue.where}: no token of it is the assistant's alone, so nothing can be learned "
            "from it; write a longer answer, or take the record out"
        )
    return Scored(ids, is_scored, dialogue.where, found.num_shared > 0)
