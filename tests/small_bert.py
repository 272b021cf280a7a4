"""A tiny BERT with all its heads, and a tokenizer of a few words for it."""

import tokenizers

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = "the cat dog sat ran on a mat . it was wet ##s ##ting good bad rain fell".split()
BERT = ModelConfig(
    vocab_size=len(SPECIAL) + len(WORDS) + 3,  # rows beyond the tokenizer
    embedding_dim=16,
    num_layers=2,
    context_length=24,
    num_heads=2,
    ffn_dim=32,
    causal=False,
    norm="layernorm",
    norm_placement="post",
    position="learned",
    embedding_norm=True,
    final_norm=False,
    token_types=2,
    mlp="gelu",
    mlp_bias=True,
    qkv_bias=True,
    head="mlm",
    pooler=True,
    next_sentence=True,
    classifier=Classifier(("bad", "fair", "good")),
)
# What each objective of labelled texts trains.
SPAM = Classifier(("ham", "spam"))
TAGS = Classifier(("none", "animal", "place"), "token")
STARS = Classifier(("stars",))
TRUNK = BERT.replace(classifier=Classifier(), pooler=False, next_sentence=False, head=None)
LABELLED = {
    "classify": BERT.replace(classifier=SPAM),
    "classify_tokens": BERT.replace(classifier=TAGS),
    "regress": BERT.replace(classifier=STARS),
    "similarity": TRUNK,
}


def word_pieces(*, mask: bool = True) -> HuggingFaceTokenizer:
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    file = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    file.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    file.decoder = tokenizers.decoders.WordPiece()
    file.add_special_tokens(list(SPECIAL))
    file.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    ids = {"bos_id": 2, "eos_id": 3, "adds_bos": True, "pad_id": 0}
    return HuggingFaceTokenizer(file.to_str(), **ids, mask_id=4 if mask else None)
