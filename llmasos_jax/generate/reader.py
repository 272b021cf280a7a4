"""A model that reads: texts and ids in, states, scores and answers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llmasos_jax.data.tokenizers.inputs import is_encoder, read_ids
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.encoder import classify_texts, embed_texts, fill_masks, score_pairs
from llmasos_jax.generate.held import Held
from llmasos_jax.generate.inputs import read_decoder_ids, read_inputs, read_prefix
from llmasos_jax.generate.texts import read_texts


class Reader(Held):
    """What every model answers of texts that are there already; `Model` writes too."""

    def encode(self, text: str, pair: str | None = None) -> list[int]:
        """The ids that the model reads of a text.

        A decoder's begin with the beginning id if the tokenizer adds one, and have no end. What an
        encoder reads, an encoder-decoder's too, is as its tokenizer's template says
        ([CLS] text [SEP] pair [SEP]).

        Args:
          text: the text.
          pair: a second one, for encoders.

        Raises:
          GenerationError: no text was given, a pair to a decoder, or the model has no tokenizer.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> cfg = ModelConfig(259, 64, 1, causal=False)
          >>> model = init_model(Manifest("m", cfg, tokenizer={"kind": "bytes"}))
          >>> model.encode("a", "b")
          [256, 97, 257, 98, 257]
        """
        for value in (text, "" if pair is None else pair):
            if not isinstance(value, str):
                raise GenerationError(f"encode was given a {type(value).__name__}; give a text")
        if pair is not None and not is_encoder(self.config):
            raise GenerationError(
                f"{self!r} is a decoder and reads one text; write both into it, without pair"
            )
        return read_ids(self.config, self._require_tokenizer(), text, pair)[0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: special ids left out, U+FFFD where bytes make no character.

        Raises:
          GenerationError: `ids` are not whole numbers or not the model's, or it has no tokenizer.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> model = init_model(
          ...     Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
          ... )
          >>> model.decode(model.encode("naïve"))
          'naïve'
        """
        numbers = np.asarray(ids)
        if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
            raise GenerationError("decode takes a list of ids, whole numbers")
        num = self.config.vocab_size
        if numbers.size and not (0 <= numbers.min() and numbers.max() < num):
            raise GenerationError(
                f"ids reach from {numbers.min()} to {numbers.max()}; the model's are 0 to {num - 1}"
            )
        return self._require_tokenizer().decode(numbers.astype(np.int64).tolist())

    def logits(
        self,
        token_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        decoder_ids: Any = None,
        prefix_lengths: Any = None,
        adapter: str | None = None,
    ) -> jax.Array:
        """Scores of the next token at each position; an encoder's MLM head's of the token there.

        Args:
          token_ids: whole numbers [B, T]; what the encoder of an encoder-decoder reads.
          attention_mask: [B, T], 1 for tokens and 0 for padding, on either side, none between;
            padding changes nothing at the tokens, positions count tokens only.
          token_type_ids: [B, T], the type of each token, for a model that has token types; None is
            type 0 everywhere.
          decoder_ids: whole numbers [B, U], what the decoder of an encoder-decoder reads, from its
            start id on; needed there.
          prefix_lengths: whole numbers [B], how many tokens of each row are a prompt that all of
            the row sees, for a model with `prefix_lm`; None is 0.
          adapter: one of `adapters`, which computes with the weights; None is the model alone.

        Returns:
          float32 [B, T, V]; of an encoder-decoder [B, U, V].

        Raises:
          GenerationError: shapes or ids do not fit the model, or it has no output layer.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> model = init_model(Manifest("m", ModelConfig(40, 64, 1)))
          >>> model.logits([[1, 2, 3], [4, 5, 0]], [[1, 1, 1], [1, 1, 0]]).shape
          (2, 3, 40)
        """
        if self.config.head is None:
            raise GenerationError(
                f"{self!r} has no output layer, so no logits; call hidden_states for what it reads"
            )
        if self.config.encoder.num_layers and decoder_ids is None:
            start = self.manifest.generation.decoder_start_id
            raise GenerationError(
                f"{self!r} is an encoder-decoder: give decoder_ids too, what its decoder has "
                f"written so far, from its start id {start} on"
            )
        rows = (token_ids, attention_mask, token_type_ids)
        width, arrays = self._arrays(rows, decoder_ids, prefix_lengths)
        return self._forward_with(adapter).logits(*arrays)[:, :width]

    def hidden_states(
        self,
        token_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        decoder_ids: Any = None,
        prefix_lengths: Any = None,
        adapter: str | None = None,
    ) -> list[jax.Array]:
        """The residual stream.

        Args:
          token_ids: whole numbers [B, T].
          attention_mask: as in `logits`.
          token_type_ids: as in `logits`.
          decoder_ids: of an encoder-decoder, as in `logits`; with them the residual stream of the
            decoder, without them that of the encoder.
          prefix_lengths: as in `logits`.
          adapter: as in `logits`.

        Returns:
          L + 1 arrays, float32 [B, T, D]: the embeddings, then after each block, the last one after
          the final norm where there is one.

        Raises:
          GenerationError: shapes or ids do not fit the model.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> model = init_model(Manifest("m", ModelConfig(40, 64, num_layers=2)))
          >>> [x.shape for x in model.hidden_states([[1, 2, 3]])]
          [(1, 3, 64), (1, 3, 64), (1, 3, 64)]
        """
        rows = (token_ids, attention_mask, token_type_ids)
        width, arrays = self._arrays(rows, decoder_ids, prefix_lengths)
        return [x[:, :width] for x in self._forward_with(adapter).layers(*arrays)]

    def fill_mask(
        self, text: str | Sequence[str], top_k: int = 5, *, adapter: str | None = None
    ) -> Any:
        """The likeliest tokens for each mask of a text, or of each of a list of texts.

        Args:
          text: with the tokenizer's mask token ([MASK], <mask>) where a token is to be found.
          top_k: candidates for each mask.
          adapter: as in `logits`.

        Returns:
          A `Filled`, or a list of them for a list: `filled[0]` are the candidates of the first
          mask, the likeliest first, each with its `token`, `id`, `probability` and the whole
          `text`; it prints as a table. Probabilities are over all tokens.

        Raises:
          GenerationError: a text has no mask, it is too long, or the model cannot fill masks.

        Example:
          >>> from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
          >>> from llmasos_jax.data.tokenizers.wordpiece import bert_tokenizer
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> pieces = "[PAD] [UNK] [CLS] [SEP] [MASK] a cat sat".split()
          >>> made = bert_tokenizer({piece: i for i, piece in enumerate(pieces)}, "here")
          >>> model = init_model(Manifest("m", ModelConfig(8, 64, 1, causal=False, head="mlm")))
          >>> model.tokenizer = HuggingFaceTokenizer(
          ...     made.to_str(), bos_id=2, eos_id=3, adds_bos=True, mask_id=4, pad_id=0
          ... )
          >>> filled = model.fill_mask("a [MASK] sat", top_k=3)
          >>> len(filled), len(filled[0]), 0 < filled[0][0].probability < 1
          (1, 3, True)
        """
        texts = read_texts("text", text)
        forward = self._forward_with(adapter)
        filled = fill_masks(self.config, self._require_tokenizer(), forward, texts, top_k)
        return filled[0] if isinstance(text, str) else filled

    def next_sentence(
        self, a: str | Sequence[str], b: str | Sequence[str], *, adapter: str | None = None
    ) -> Any:
        """The probability that text b follows text a, and is not from elsewhere.

        Args:
          a: the first text, or a list of them.
          b: the second one, or as many.
          adapter: as in `logits`.

        Returns:
          A number from 0 to 1; for lists a list.

        Raises:
          GenerationError: the model has no score for it, a pair is too long, or the lists have
            different lengths.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> cfg = ModelConfig(259, 64, 1, causal=False, pooler=True, next_sentence=True)
          >>> model = init_model(Manifest("m", cfg, tokenizer={"kind": "bytes"}))
          >>> 0 < model.next_sentence("It rained.", "The street was wet.") < 1
          True
        """
        if isinstance(a, str) != isinstance(b, str):
            raise GenerationError("a and b must be two texts, or two lists of as many")
        firsts, seconds = read_texts("a", a), read_texts("b", b)
        if len(firsts) != len(seconds):
            raise GenerationError(
                f"a has {len(firsts)} texts, b {len(seconds)}; give a pair of each"
            )
        tokenizer, forward = self._require_tokenizer(), self._forward_with(adapter)
        scores = score_pairs(self.config, tokenizer, forward, firsts, seconds)
        return scores[0] if isinstance(a, str) else scores

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool = True,
        truncate: bool = False,
        adapter: str | None = None,
    ) -> np.ndarray:
        """One vector for each text, as the model's `pooling` says: its tokens' mean, or the first.

        Texts of about one length run together; a text's vector is the same, bit for bit, whatever
        its neighbours are, while they run in one compiled shape, and to 1e-5 across shapes.

        Args:
          texts: a list of texts, or one.
          normalize: whether vectors are divided by their length, so that their products are
            cosines.
          truncate: whether a text that is longer than the model's context is cut, or refused.
          adapter: as in `logits`.

        Returns:
          float32 [B, D]; [D] for one text.

        Raises:
          GenerationError: a text is too long or has no tokens.

        Example:
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> cfg = ModelConfig(259, 64, 1, causal=False, head=None)
          >>> model = init_model(Manifest("m", cfg, tokenizer={"kind": "bytes"}))
          >>> vectors = model.embed(["one text", "another", "one text"])
          >>> vectors.shape, bool(vectors[0] @ vectors[2] > vectors[0] @ vectors[1])
          ((3, 64), True)
        """
        vectors_bd = embed_texts(
            self.config,
            self._require_tokenizer(),
            self._forward_with(adapter),
            read_texts("texts", texts),
            normalize=normalize,
            truncate=truncate,
        )
        return vectors_bd[0] if isinstance(texts, str) else vectors_bd

    def classify(
        self,
        texts: str | Sequence[str],
        top_k: int | None = None,
        *,
        pairs: str | Sequence[str] | None = None,
        truncate: bool = False,
        adapter: str | None = None,
    ) -> Any:
        """The labels of a text, or of its tokens, with their probabilities.

        Args:
          texts: a list of texts, or one.
          top_k: how many labels, the likeliest first; None gives all.
          pairs: the second text of each, of an encoder that was trained on two.
          truncate: whether a text that is longer than the model's context is cut, or refused.
          adapter: as in `logits`.

        Returns:
          For a text a list of `Label`; where the classifier's level is "token", of `LabelledToken`,
          each with its labels, special tokens left out; where it has one label of a text, a list of
          that `Score`. For a list of texts, a list of these.

        Raises:
          GenerationError: the model has no classifier, or a text is too long.

        Example:
          >>> from llmasos_jax.config.heads import Classifier
          >>> from llmasos_jax.config.model import ModelConfig
          >>> from llmasos_jax.format.manifest import Manifest
          >>> from llmasos_jax.generate.load import init_model
          >>> cfg = ModelConfig(259, 64, 1, causal=False, classifier=Classifier(("bad", "good")))
          >>> model = init_model(Manifest("m", cfg, tokenizer={"kind": "bytes"}))
          >>> sorted(label.label for label in model.classify("a fine day"))
          ['bad', 'good']
        """
        firsts, seconds = read_texts("texts", texts), None
        if pairs is not None:
            seconds = read_texts("pairs", pairs)
            if len(firsts) != len(seconds):
                raise GenerationError(
                    f"there are {len(firsts)} texts and {len(seconds)} pairs; give one for each"
                )
        found = classify_texts(
            self.config,
            self._require_tokenizer(),
            self._forward_with(adapter),
            firsts,
            seconds,
            top_k=top_k,
            truncate=truncate,
        )
        return found[0] if isinstance(texts, str) else found

    def _arrays(
        self, rows: tuple[Any, Any, Any], decoder_ids: Any, prefix_lengths: Any
    ) -> tuple[int, tuple[Any, Any, Any]]:
        """What `Forward` takes, checked and padded, and how wide the result is without padding."""
        inputs = read_inputs(self.config, *rows)
        decoder = read_decoder_ids(self.config, decoder_ids, len(inputs.tokens_bt))
        prefix_bt = read_prefix(self.config, prefix_lengths, inputs.mask_bt)
        if decoder is None:
            return inputs.width, (inputs.arrays(), None, prefix_bt)
        return decoder.width, (inputs.arrays(), decoder.arrays(), prefix_bt)
