r"""How byte-level BPE cuts a text first, by the names that GGUF files use (`tokenizer.ggml.pre`).

The patterns are those of the families' own `tokenizer.json` files, which llama.cpp's source lists
beside the names (`src/llama-vocab.cpp`).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.errors import TokenizerError, did_you_mean

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_MARKS = r" ?[^\s\p{L}\p{N}]+"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _modern(digits: str) -> str:
    """Llama 3's pattern; the families differ in how many digits stand together."""
    return rf"{_ENDINGS}|{_HEAD}\p{{L}}+|{digits}|{_MARKS}[\r\n]*|{_TAIL}"


def _cased(digits: str, endings: str) -> str:
    """GPT-4o's pattern: words are cut where a capital follows a small letter."""
    words = rf"{_HEAD}{_UPPER}*{_LOWER}+{endings}|{_HEAD}{_UPPER}+{_LOWER}*{endings}"
    return rf"{words}|{digits}|{_MARKS}[\r\n/]*|{_TAIL}"


_LLAMA3 = (_modern(r"\p{N}{1,3}"),)
_QWEN2 = (_modern(r"\p{N}"),)
_DIGITS_APART = (r"\p{N}", _GPT2)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _CJK,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_TAIL}",
)
# Letters that have two cases, as DeepSeek's first tokenizer lists them: not all that Unicode has.
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄ"
    "Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)


@dataclass(frozen=True)
class PreTokenizer:
    """How a text is cut.

    Attributes:
      patterns: regular expressions, one after the other.
      ignore_merges: whether a piece that is a token is taken whole.
      adds_bos: whether a text begins with the bos id where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


_LLAMA = PreTokenizer(_LLAMA3, ignore_merges=True, adds_bos=True)
_TABLE: dict[PreTokenizer, tuple[str, ...]] = {
    _LLAMA: ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
    PreTokenizer(_LLAMA3): ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    PreTokenizer(_QWEN2): (
        *("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "grok-2", "solar-open"),
    ),
    PreTokenizer((_GPT2,)): (
        *("gpt-2", "phi-2", "olmo", "mpt", "jais", "roberta-bpe", "jina-es", "jina-de"),
        *("jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "modern-bert", "exaone4"),
        *("trillion", "granite-docling", "gigachat", "mellum", "a.x-4.0"),
    ),
    PreTokenizer(_DIGITS_APART): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")): ("falcon",),
    PreTokenizer(_DEEPSEEK3): ("deepseek-v3", "hunyuan-dense"),
    PreTokenizer(_DEEPSEEK_LLM): ("deepseek-llm",),
    PreTokenizer(_DEEPSEEK_CODER): ("deepseek-coder",),
    PreTokenizer((_cased(r"\p{N}", ""),), ignore_merges=True, adds_bos=True): ("tekken",),
    PreTokenizer((_cased(r"\p{N}{1,3}", f"{_ENDINGS}?"),)): ("gpt-4o", "llama4", "kanana2"),
    PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+",)): ("bloom", "gpt3-finnish", "poro-chat"),
    PreTokenizer((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")): ("viking",),
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")): ("default",),
}
TABLE = {name: kind for kind, names in _TABLE.items() for name in names}


def pattern_of_gpt2() -> str:
    """The regular expression by which GPT-2 cuts a text."""
    return _GPT2


def pre_tokenizer(name: str) -> PreTokenizer:
    r"""The pre-tokenizer of that name.

    Raises:
      TokenizerError: it is not known here.

    Example:
      >>> pre_tokenizer("smollm").patterns[0]
      '\\p{N}'
    """
    if name not in TABLE:
        raise TokenizerError(
            f'tokenizer.ggml.pre = "{name}" is not known here, and cutting a text otherwise would '
            f"give other ids{did_you_mean(name, TABLE)}"
        )
    return TABLE[name]
