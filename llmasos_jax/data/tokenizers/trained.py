"""Trains a `tokenizer.json` from text: WordPiece, unigram or byte-level BPE.

The same text gives the same file, on any number of cores and in any process. The trainers of the
`tokenizers` library alone do not promise that: where counts tie, the WordPiece one goes by ids that
it gave out in the order of a hash table, and the unigram one adds floats in the order of threads.
So WordPiece is trained as plain BPE over characters that stand for "c" and "##c", in an alphabet
that is fixed before; BPE over the 256 bytes has such an alphabet by itself; and unigram pieces are
learned by the sentencepiece library on a fixed number of threads.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmasos_jax.config.schema import Config
from llmasos_jax.data.files import write_atomically
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.sentencepiece import learned_pieces, text_key, training_texts
from llmasos_jax.data.tokenizers.wordpiece import SPECIAL, bert_tokenizer
from llmasos_jax.data.tokenizers.words import BYTE_LIKE
from llmasos_jax.errors import TokenizerError
from llmasos_jax.progress import Progress

_VERSION = 1  # of the training below; another one trains cached tokenizers again
NUM_SENTINELS = 100  # as T5 has; one row of 512 tokens needs about 26
_BERT = tuple(SPECIAL.values())
# T5's first three where T5 has them; then what encoders and decoders need beside them.
_T5 = ("<pad>", "</s>", "<unk>", "<s>", "<mask>")
_SPACE = "\u2581"
# Two planes without characters: what a word begins with, and what goes on with it.
_FIRST, _INSIDE = 0x40000, 0x60000


@dataclass(frozen=True)
class Use:
    """What a tokenizer is for.

    Attributes:
      template: what stands around a text: "encoder" (<s> a </s> b </s>), "encoder-decoder"
        (a </s>) or "decoder" (<s> a). WordPiece always has BERT's.
      num_sentinels: tokens <extra_id_0>, ... for corrupted spans; they are the last ids, and
        <extra_id_0> is the very last, as in T5.
    """

    template: str = "decoder"
    num_sentinels: int = 0


def use_of(cfg: Config) -> Use:
    """What the tokenizer of a run is for.

    Sentinels are there for span corruption and for objectives of somebody's own; other objectives
    have none, so that they cost no row of the embedding table.
    """
    model = cfg.model
    template = (
        "encoder-decoder" if model.encoder.num_layers else "decoder" if model.causal else "encoder"
    )
    needs = cfg.objective.name == "span_corruption" or ":" in cfg.objective.name
    return Use(template, NUM_SENTINELS if needs else 0)


def trained(cfg: Config, documents: Sequence[str], cache: Path) -> HuggingFaceTokenizer:
    """Trains a tokenizer on the documents that are not held out, or takes it from `cache`.

    Raises:
      TokenizerError: too little text for `model.vocab_size` ids, or too few ids to be useful.
    """
    use = use_of(cfg)
    key, split = text_key(cfg, documents)
    settings = (cfg.model.vocab_size, cfg.tokenizer, key, tokenizers.__version__, use, _VERSION)
    name = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    path = cache / f"tokenizer-{name}.json"
    if not path.is_file():
        texts = training_texts(cfg, documents, split)
        kind, lowercase = cfg.tokenizer.model_type, cfg.tokenizer.lowercase
        text = train(texts, cfg.model.vocab_size, kind, use=use, lowercase=lowercase)
        write_atomically(path, text.encode("utf-8"))
    return HuggingFaceTokenizer.from_file(path)


def train(
    texts: Sequence[str],
    vocab_size: int,
    model_type: str,
    *,
    use: Use | None = None,
    lowercase: bool = True,
) -> str:
    r"""Trains a tokenizer and returns its `tokenizer.json`.

    "wordpiece" is BERT's: [PAD] [UNK] [CLS] [SEP] [MASK] are the ids 0 to 4; spaces and, with
    `lowercase`, case and accents are lost, and a word with a character that was too rare for a
    piece of its own becomes [UNK]. "unigram" and "bpe" have <pad> </s> <unk> <s> <mask> as 0 to 4;
    they lose no text: what has no piece is written as bytes (unigram, where U+2581 alone comes back
    as the space that it stands for), or all is bytes (bpe).

    Args:
      texts: what to learn from.
      vocab_size: ids in all.
      model_type: "wordpiece", "unigram" or "bpe".
      use: what it is for; a decoder if None.
      lowercase: for "wordpiece".

    Raises:
      TokenizerError: too little text for so many ids, or no room for a useful vocabulary.

    Example:
      >>> file = train(["the cat and the other cat"] * 9, 25, "wordpiece")
      >>> tokenizers.Tokenizer.from_str(file).encode("The cat").tokens
      ['[CLS]', 'the', 'cat', '[SEP]']
    """
    use = use or Use()
    kinds: dict[str, Callable[[], tokenizers.Tokenizer]] = {
        "wordpiece": lambda: _wordpiece(texts, vocab_size, use, lowercase),
        "unigram": lambda: _unigram(texts, vocab_size, use),
        "bpe": lambda: _bpe(texts, vocab_size, use),
    }
    made = kinds[model_type]()
    found = made.get_vocab_size(with_added_tokens=True)
    if found != vocab_size:
        raise TokenizerError(
            f"{sum(map(len, texts))} characters of text are too little to train model.vocab_size="
            f'{vocab_size} pieces of "{model_type}"; at most {found} are possible: lower it, give '
            'more text, or set tokenizer.kind="bytes"'
        )
    return made.to_str(pretty=True)


def _wordpiece(
    texts: Sequence[str], vocab_size: int, use: Use, lowercase: bool
) -> tokenizers.Tokenizer:
    bare = bert_tokenizer({"[UNK]": 0}, Path(), lowercase=lowercase)
    counts = _count_words(texts, bare.normalizer, bare.pre_tokenizer)
    room = vocab_size - len(_BERT) - use.num_sentinels
    learned: list[str] = []
    for most in (room // 2, room):  # rare characters get a piece if nothing else takes the room
        if len(learned) < room:
            learned = _learn_pieces(counts, _alphabet(counts, most), room, vocab_size)
    vocab = {piece: i for i, piece in enumerate((*_BERT, *learned))}
    made = bert_tokenizer(vocab, Path(), lowercase=lowercase)
    made.add_special_tokens(_sentinels(use))
    return made


def _count_words(texts: Sequence[str], normalizer: Any, pre_tokenizer: Any) -> Counter[str]:
    counts = Counter[str]()
    with Progress("Counting words", sum(map(len, texts))) as progress:
        for text in texts:
            for line in text.split("\n"):
                cut = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(line))
                counts.update(word for word, _ in cut)
            progress.advance(len(text))
    return counts


def _forms(word: str) -> Iterator[str]:
    yield word[0]
    for character in word[1:]:
        yield f"##{character}"


def _alphabet(counts: Mapping[str, int], most: int) -> list[str]:
    """The characters, at the beginning of a word and inside, that have a piece; sorted.

    The rarest, 5 in 10,000 of the text, have none; nor have more than `most`: at first that is half
    of the pieces, so that the thousands of a Chinese text leave some for longer ones.
    """
    found = Counter[str]()
    for word, count in counts.items():
        for form in _forms(word):
            found[form] += count
    least = 0.9995 * found.total()
    kept: list[str] = []
    for form, count in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        if least <= 0 or len(kept) >= most:
            break
        kept.append(form)
        least -= count
    return sorted(kept, key=lambda form: (form.startswith("##") and len(form) > 2, form))


def _learn_pieces(
    counts: Mapping[str, int], alphabet: Sequence[str], room: int, vocab_size: int
) -> list[str]:
    """The alphabet, then what merging the most frequent neighbours gives: `room` pieces at most."""
    if room < 2 or not alphabet:
        raise TokenizerError(
            f"model.vocab_size={vocab_size} leaves no pieces beside the special tokens, or there "
            "is no text; raise it (512 is a start), or give more text"
        )
    first = [form for form in alphabet if len(form) == 1]
    inside = [form for form in alphabet if len(form) > 1]
    code = {form: chr(_FIRST + i) for i, form in enumerate(first)}
    code |= {form: chr(_INSIDE + i) for i, form in enumerate(inside)}
    form_of = {character: form for form, character in code.items()}
    known = [word for word in counts if all(form in code for form in _forms(word))]
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        initial_alphabet=list(form_of),
        limit_alphabet=len(form_of),
        special_tokens=[],
        show_progress=False,
    )
    made.train_from_iterator(_repeated(known, counts, code), trainer)
    vocab = made.get_vocab()
    pieces = []
    for piece in sorted(vocab, key=vocab.__getitem__):
        forms = [form_of[character] for character in piece]
        pieces.append(forms[0] + "".join(form.removeprefix("##") for form in forms[1:]))
    return pieces


def _repeated(
    words: Iterable[str], counts: Mapping[str, int], code: Mapping[str, str]
) -> Iterator[str]:
    """Texts in which each word stands as often as it was counted."""
    with Progress("Training WordPiece", len(counts)) as progress:
        for word in words:
            coded = "".join(code[form] for form in _forms(word))
            left = counts[word]
            while left > 0:
                yield " ".join([coded] * min(left, 1000))
                left -= 1000
            progress.advance(1)


def _bpe(texts: Sequence[str], vocab_size: int, use: Use) -> tokenizers.Tokenizer:
    room = vocab_size - use.num_sentinels
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    _need(room, len(_T5) + len(letters), vocab_size, use)
    made = tokenizers.Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        initial_alphabet=letters,
        special_tokens=[tokenizers.AddedToken(t, special=True) for t in _T5],
        show_progress=False,
    )
    with Progress("Training BPE", sum(map(len, texts))) as progress:

        def watched() -> Iterator[str]:
            for text in texts:
                yield text
                progress.advance(len(text))

        made.train_from_iterator(watched(), trainer)
    _finish_text(made, use)
    return made


def _unigram(texts: Sequence[str], vocab_size: int, use: Use) -> tokenizers.Tokenizer:
    room = vocab_size - use.num_sentinels
    _need(room, len(_T5) + 256, vocab_size, use)
    pieces = learned_pieces(texts, room, _T5)
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", _SPACE)
    # The model would take "<0x41>" in a text for the byte.
    made.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(BYTE_LIKE), "merged_with_previous")
    made.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _finish_text(made, use)
    return made


def _need(room: int, reserved: int, vocab_size: int, use: Use) -> None:
    if room <= reserved:
        raise TokenizerError(
            f"model.vocab_size={vocab_size} leaves no pieces beside the {reserved} for bytes and "
            f"specials and {use.num_sentinels} sentinels; raise it (at least "
            f'{reserved + use.num_sentinels + 1}; 1024 is a start) or set tokenizer.kind="bytes"'
        )


def _finish_text(made: tokenizers.Tokenizer, use: Use) -> None:
    """Adds the special tokens, the sentinels and the template."""
    made.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in _T5])
    made.add_special_tokens(_sentinels(use))
    single, pair = {
        "encoder": ("<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 $B:1 </s>:1"),
        "encoder-decoder": ("$A:0 </s>:0", "$A:0 </s>:0 $B:1 </s>:1"),
        "decoder": ("<s>:0 $A:0", "<s>:0 $A:0 $B:1"),
    }[use.template]
    ids = [(t, made.token_to_id(t)) for t in _T5 if t in single]
    made.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=ids
    )


def _sentinels(use: Use) -> list[tokenizers.AddedToken]:
    names = [f"<extra_id_{i}>" for i in reversed(range(use.num_sentinels))]
    return [tokenizers.AddedToken(name, special=True) for name in names]
