"""Strategies that damage what was whole, and values that are not expected where they stand."""
from __future__ import annotations

from hypothesis import strategies as st

BLOCKS = st.binary(min_size=1, max_size=8) | st.sampled_from([b"\x00", b"\n", b"\r\n", b",", b'"', b"\xff\xfe", b"#"])


@st.composite
def damaged(draw, content: bytes, most: int = 3) -> bytes:
    """Up to `most` of: a bit flipped, the end cut off, a part left out, repeated, replaced, or something put in."""
    for _ in range(draw(st.integers(1, most))):
        size = len(content)
        at = draw(st.integers(0, max(0, size - 1)))
        end = min(size, at + draw(st.integers(1, 64)))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "replace", "insert"]))
        if kind == "flip" and size:
            content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1:]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[end:]
        elif kind == "repeat":
            content = content[:end] + content[at:end] + content[end:]
        elif kind == "replace":
            content = content[:at] + draw(BLOCKS) + content[end:]
        else:
            content = content[:at] + draw(BLOCKS) + content[at:]
    return content


# of every type that JSON knows, among them what looks like a good value
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["", "16", "true", "timer_xl", "cache", "causal", "relu", 0, 1, 2, 4, 8, 16, 1e400, -1, 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4)
