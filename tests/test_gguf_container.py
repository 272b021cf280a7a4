"""GGUF headers: what is written is read, and whatever the bytes, only FormatError comes out."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_time import cpu_time_under
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.errors import FormatError
from llmasos_jax.interop.gguf.container import (
    MAX_HEADER,
    MAX_TENSORS,
    MAX_TEXT,
    Container,
    parse_container,
    read_container,
)

U8, I32, F32, BOOL, STRING, ARRAY, U32, U64, F64 = 0, 5, 6, 7, 8, 9, 4, 10, 12
CODES = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", F64: "<d"}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, item: Any) -> bytes:
    """A value with its type, as the file has it."""
    if kind == STRING:
        return struct.pack("<I", STRING) + text(item)
    return struct.pack("<I", kind) + struct.pack(CODES[kind], item)


def array(kind: int, items: list[Any]) -> bytes:
    body = b"".join(text(i) if kind == STRING else struct.pack(CODES[kind], i) for i in items)
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + body


def info(name: str, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    packed = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


def by_hand(
    keys: dict[str, bytes],
    infos: list[bytes],
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    num_tensors, num_keys = counts or (len(infos), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)
    head += b"".join(text(k) + v for k, v in keys.items()) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def parse(raw: bytes) -> Container:
    return parse_container(raw[:MAX_HEADER], len(raw), Path("m.gguf"))


def a_file(version: int = 3) -> bytes:
    keys = {
        "general.architecture": value(STRING, "llama"),
        "llama.block_count": value(U32, 2),
        "x.float": value(F32, 0.5),
        "x.double": value(F64, 1e300),
        "x.flag": value(BOOL, True),
        "x.negative": value(I32, -7),
        "x.large": value(U64, 2**63),
        "x.numbers": array(F32, [1.0, 2.0, -3.5]),
        "x.flags": array(BOOL, [True, False]),
        "x.texts": array(STRING, ["a", "", "über 世界"]),
        "x.none": array(STRING, []),
    }
    infos = [info("a", (4, 3), 0, 0), info("b", (32, 2), 8, 64), info("c", (5,), 1, 160)]
    return by_hand(keys, infos, bytes(range(170)), version=version)


@pytest.mark.parametrize("version", [2, 3])
def test_everything_of_a_file_made_by_hand(version: int) -> None:
    found = parse(a_file(version))
    assert found.version == version
    metadata = dict(found.metadata)
    assert metadata.pop("x.numbers").tolist() == [1.0, 2.0, -3.5]
    assert metadata.pop("x.flags").tolist() == [True, False]
    assert metadata == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "x.float": 0.5,
        "x.double": 1e300,
        "x.flag": True,
        "x.negative": -7,
        "x.large": 2**63,
        "x.texts": ["a", "", "über 世界"],
        "x.none": [],
    }
    a, b, c = found.tensors.values()
    data = len(a_file()) - 170
    assert (a.name, a.shape, a.type.name, a.begin, a.nbytes) == ("a", (3, 4), "F32", data, 48)
    assert (b.shape, b.type.name, b.begin, b.nbytes) == ((2, 32), "Q8_0", data + 64, 68)
    assert (c.shape, c.type.name, c.nbytes) == ((5,), "F16", 10)


@pytest.mark.parametrize("alignment", [32, 256])
def test_a_file_of_the_package(tmp_path: Path, alignment: int) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(3)
    writer.add_token_list([f"token {i}" for i in range(50_000)])
    writer.add_token_scores([float(i) for i in range(50_000)])
    tensors = {n: np.arange(s, dtype=np.float32) for n, s in (("x", 7), ("y", 100), ("z", 1))}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_container(path)
    assert found.metadata["tokenizer.ggml.tokens"][49_999] == "token 49999"
    np.testing.assert_array_equal(found.metadata["tokenizer.ggml.scores"], np.arange(50_000.0))
    raw = path.read_bytes()
    for name, place in found.tensors.items():
        assert place.begin % alignment == 0
        stored = np.frombuffer(raw, "<f4", tensors[name].size, place.begin)
        np.testing.assert_array_equal(stored, tensors[name])


ONE = {"general.architecture": value(STRING, "llama")}
HUGE = 2**63
WRONG = {
    "no GGUF": (b"GGML" + bytes(100), "begins with b'GGML'"),
    "empty": (b"", "begins with b''"),
    "cut after the magic": (b"GGUF\3\0", "goes past the end of the file"),
    "version 1": (by_hand({}, [], version=1), "GGUF version 1, versions 2 and 3 are read; convert"),
    "version 4": (by_hand({}, [], version=4), "update llmasos_jax"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
    "tensors": (by_hand({}, [], counts=(HUGE, 0)), r"claims 9223372036854775808 tensors"),
    "keys": (by_hand({}, [], counts=(0, HUGE)), r"claims 9223372036854775808 metadata keys"),
    "more keys than are there": (by_hand(ONE, [], counts=(0, 9)), "claims 0 bytes"),
    "key's length": (by_hand({}, [], counts=(0, 1)) + struct.pack("<Q", HUGE), "a key's name at"),
    "text's length": (
        by_hand({"k": struct.pack("<IQ", STRING, 2**50)}, []),
        'the value of "k" of 1125899906842624 bytes',
    ),
    "text's bytes": (by_hand({"k": value(STRING, b"\xff\xfe")}, []), "is not UTF-8"),
    "a text of an array": (by_hand({"k": array(STRING, [b"a", b"\xff"])}, []), "string 1 is not"),
    "array's count": (
        by_hand({"k": struct.pack("<IIQ", ARRAY, U64, 2**60)}, []),
        "goes past the end of the file",
    ),
    "texts' count": (
        by_hand({"k": struct.pack("<IIQ", ARRAY, STRING, 2**40)}, []),
        "claims 1099511627776 strings; a file has at most 1048576",
    ),
    "texts that are not there": (
        by_hand({"k": struct.pack("<IIQ", ARRAY, STRING, 2**19)}, []),
        "that with index 1 goes past the end of the file",
    ),
    "an array of arrays": (
        by_hand({"k": struct.pack("<IIQ", ARRAY, ARRAY, 1)}, []),
        "an array of arrays",
    ),
    "a value's type": (by_hand({"k": struct.pack("<I", 13)}, []), "has type 13; GGUF has"),
    "a boolean": (by_hand({"k": struct.pack("<IB", BOOL, 2)}, []), "other than 0 and 1"),
    "a key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("k") + value(U32, 1)),
        'the key "k" stands twice',
    ),
    "alignment": (
        by_hand({"general.alignment": value(U32, 48)}, []),
        "general.alignment = 48 must be a power of two",
    ),
    "alignment's size": (by_hand({"general.alignment": value(U32, 2**31)}, []), "a power of two"),
    "alignment's kind": (by_hand({"general.alignment": value(BOOL, True)}, []), "a power of two"),
    "dimensions": (by_hand({}, [info("t", (1,) * 5, 0, 0)], bytes(99)), "5 dimensions"),
    "many dimensions": (
        by_hand({}, [text("t") + struct.pack("<I", 2**31)], bytes(99)),
        "claims 2147483648 dimensions",
    ),
    "a tensor's type": (by_hand({}, [info("t", (4,), 99, 0)], bytes(99)), "type 99, which is not"),
    "a removed type": (by_hand({}, [info("t", (4,), 4, 0)], bytes(99)), "type 4, which is not"),
    "sizes": (by_hand({}, [info("t", (2**62, 4), 0, 0)], bytes(99)), "more than the file has"),
    "sizes whose product wraps around": (
        by_hand({}, [info("t", (2**32, 2**32), 0, 0)], bytes(99)),
        "more than the file has",
    ),
    "no numbers": (by_hand({}, [info("t", (0, 4), 0, 0)], bytes(99)), "more than the file has"),
    "rows": (by_hand({}, [info("t", (40,), 8, 0)], bytes(99)), "needs a multiple of 32"),
    "offset off the grid": (
        by_hand({}, [info("t", (4,), 0, 8)], bytes(99)),
        "not a multiple of the alignment 32",
    ),
    "offset past the end": (by_hand({}, [info("t", (4,), 0, 2**40)], bytes(99)), "it is cut off"),
    "data cut off": (by_hand({}, [info("t", (4,), 0, 0)], bytes(15)), "the file has"),
    "overlap": (
        by_hand({}, [info("t", (16,), 0, 0), info("u", (4,), 0, 32)], bytes(99)),
        '"t" and "u" overlap at byte',
    ),
    "the same place": (
        by_hand({}, [info("t", (4,), 0, 0), info("u", (4,), 0, 0)], bytes(99)),
        "overlap",
    ),
    "a tensor twice": (
        by_hand({}, [info("t", (4,), 0, 0), info("t", (4,), 0, 32)], bytes(99)),
        '"t" stands twice',
    ),
    "a tensor's name": (by_hand({}, [text("")], bytes(99)), "must have 1 to 1024"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_said(name: str) -> None:
    raw, message = WRONG[name]
    with pytest.raises(FormatError, match=message) as caught:
        parse(raw)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read m\.gguf: No such file"):
        read_container(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="Is a directory"):
        read_container(tmp_path)


def bounded(raw: bytes) -> Container | None:
    """Parses within the bounds that hold whatever the bytes; None if they are refused."""
    tracemalloc.start()
    try:
        with cpu_time_under(1):
            return parse(raw)
    except FormatError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200e6, peak


WHOLE = a_file()
# Every count, length, type and offset of the header stands in one of its bytes.
HEADER = len(WHOLE) - 170


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(0, HEADER - 8),
            st.one_of(
                st.binary(min_size=1, max_size=1),
                st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).map(
                    lambda number: struct.pack("<Q", number)
                ),
                st.binary(min_size=1, max_size=8),
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_changed_bytes(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(WHOLE)
    for place, new in changes:
        raw[place : place + len(new)] = new
    found = bounded(bytes(raw))
    if found is not None:
        places = sorted(found.tensors.values(), key=lambda t: t.begin)
        assert all(p.begin + p.nbytes <= len(raw) for p in places)
        assert all(a.begin + a.nbytes <= b.begin for a, b in zip(places, places[1:], strict=False))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, len(WHOLE) - 1))
def test_cut_off_anywhere(length: int) -> None:
    assert bounded(WHOLE[:length]) is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic(rest: bytes) -> None:
    bounded(b"GGUF" + rest)
    bounded(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + rest)


def largest_headers() -> dict[str, bytes]:
    """Headers as long as one may be, of what costs most to read."""
    room = MAX_HEADER - 200
    empty = struct.pack("<IIQ", ARRAY, STRING, 2**20) + bytes(8 * 2**20)
    # One character of four bytes makes Python keep four bytes for each character of the text.
    wide = b"\xf0\x9f\x98\x80" + b"a" * (MAX_TEXT - 4)
    count = MAX_TENSORS
    infos = [info(f"t{i}", (1, 1, 1, 1), 24, 32 * i) for i in range(count)]
    names = [info("t", (1,), 24, 32 * i) for i in range(count)]
    return {
        "empty strings": by_hand({"k": empty}, []),
        "short strings": by_hand({"k": array(STRING, [f"token {i}" for i in range(2**20)])}, []),
        "wide texts": by_hand({f"k{i}": value(STRING, wide) for i in range(3)}, []),
        "numbers": by_hand({"k": struct.pack("<IIQ", ARRAY, U8, room) + bytes(room)}, []),
        "tensors": by_hand({}, infos, bytes(32 * count)),
        "tensors of one name": by_hand({}, names, bytes(32 * count)),
        "keys": by_hand({f"k{i}": value(U32, i) for i in range(4096)}, []),
    }


def test_the_largest_headers_are_read_in_a_second() -> None:
    """Without `tracemalloc`, which slows a loop tenfold; the memory is in the next test."""
    for name, raw in largest_headers().items():
        with cpu_time_under(1, name):
            try:
                parse(raw)
            except FormatError as error:
                assert name == "tensors of one name" and "stands twice" in str(error)


def test_the_largest_headers_take_little_memory(tmp_path: Path) -> None:
    headers = largest_headers()
    for name in ("short strings", "wide texts", "numbers", "tensors of one name"):
        path = tmp_path / "m.gguf"
        path.write_bytes(headers.pop(name))
        tracemalloc.start()
        try:
            read_container(path)
        except FormatError:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200e6, (name, peak)


def test_a_text_has_a_limit() -> None:
    with pytest.raises(FormatError, match="has 8388609 bytes, a text has at most 8388608"):
        parse(by_hand({"k": value(STRING, b"a" * (MAX_TEXT + 1))}, []))
    with pytest.raises(FormatError, match="index 1 goes past .* or is longer than 8388608 bytes"):
        parse(by_hand({"k": array(STRING, ["", "a" * (MAX_TEXT + 1)])}, []))
