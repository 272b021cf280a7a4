"""What a damaged or a hostile file looks like, and what reading one may take."""

import contextlib
import resource
from collections.abc import Iterator

from cpu_time import cpu_time_under
from hypothesis import strategies as st

SECONDS = 1.0
MEGABYTES = 200

# What a liar would put where a value was.
NASTY = st.sampled_from(
    [
        *(b"-1", b"0", b"1e999", b"1e308", b"NaN", b"-Infinity", b"9" * 40, b"9" * 5000, b"1.5"),
        *(b"null", b"true", b'""', b'"../../etc/passwd"', b'"/etc/passwd"', b'"a\\u0000b"', b"[]"),
        *(b'"\\ud800"', b'"os:system"', b"{}", b"[[]]", b"[" * 2000, b'{"a":' * 2000, b"\xff\xfe"),
        *(b'{"a":1,"a":2}', b"[null]", b"[-1]", b"[1e5]", b"4096", b"16777216"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, content: bytes, editable: int) -> bytes:
    """The content with one to four edits in its first `editable` bytes, perhaps cut off."""
    raw = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(editable, len(raw)) - 1))
        kind = draw(st.sampled_from(["flip", "insert", "delete", "nasty", "cut", "repeat"]))
        if kind == "flip":
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del raw[at : at + draw(st.integers(1, 16))]
        elif kind == "nasty":
            colon = raw.find(b":", at)
            end = min((e for e in (raw.find(c, colon) for c in (b",", b"}")) if e >= 0), default=at)
            raw[max(colon + 1, 0) : end] = draw(NASTY)
        elif kind == "cut" and at:
            del raw[at:]
        else:
            raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes more than a second of the processor, or asks for 200 MB of memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MEGABYTES * 2**20, hard))
    try:
        with cpu_time_under(SECONDS):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
