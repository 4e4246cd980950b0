"""Files as damage, old tools and bad will leave them: bytes changed, cut, doubled, put in."""

from __future__ import annotations

from hypothesis import strategies as st

TELLING = (
    b"\0", b"\xff", b"\n", b"\r\n", b'"', b"{", b"}", b"[", b"]", b",", b"-", b"1e999", b"NaN",
    b"null", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x1b[31m", b"\xff" * 4, b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00", b"9" * 30, b"0" * 8, b"../", b"\\", b"<", b"&x;", b"\xff" * 8,
)  # fmt: skip
"""Bytes that mean something in one format or another."""


@st.composite
def mutants(draw: st.DrawFn, data: bytes, most: int = 5) -> bytes:
    """A few changes of `data`, near its start as often as anywhere."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        end = len(found)
        place = draw(st.integers(0, end) | st.integers(0, min(end, 200)))
        length = draw(st.integers(0, 8) | st.integers(0, end))
        change = draw(st.integers(0, 6))
        if change == 0 and place < end:
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif change == 1:
            piece = draw(st.sampled_from(TELLING) | st.binary(max_size=8))
            found[place : place + len(piece)] = piece
        elif change == 2:
            found[place:place] = draw(st.sampled_from(TELLING) | st.binary(max_size=8))
        elif change == 3:
            del found[place : place + length]
        elif change == 4:
            del found[place:]
        elif change == 5:
            found[place:place] = found[place : place + length]
        else:
            source = draw(st.integers(0, end))
            found[place : place + length] = found[source : source + length]
    return bytes(found)
