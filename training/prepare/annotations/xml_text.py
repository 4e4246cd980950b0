"""XML from anywhere: any encoding of text, no entities of its own, bounded depth."""

from __future__ import annotations

import codecs
import re
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

_MAX_DEPTH = 100
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BARE = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}  # without a mark
_DECLARATION = re.compile(r"\s*<\?xml[^>]*?>")
_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z][\w.:-]{0,40})["']""")
_TEXT = (
    "ascii", "big5", "cp", "euc", "gb", "hz", "iso2022", "iso8859", "johab", "koi8", "latin",
    "mac", "shift_jis", "tis", "utf-8", "utf-16", "utf-32",
)  # fmt: skip
"""How the names of encodings begin that are read; some others take any time to decode."""


def parse_xml(content: bytes) -> Element:
    """A document without entities of its own, which may stand for any amount of text.

    Args:
        content: In the encoding that its first bytes or its declaration say, else in UTF-8.

    Raises:
        xml.parsers.expat.ExpatError: Not XML.
        ValueError: Not in that encoding, entities, or more levels than annotations have.
        LookupError: An encoding that there is not.
    """
    # expat itself knows no encodings of several bytes; of text it takes no heed of the declaration.
    text = content.decode(_encoding(content))
    text = text[found.end() :] if (found := _DECLARATION.match(text)) else text.lstrip()
    builder, depth = TreeBuilder(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: Any) -> None:
        raise ValueError("it declares entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)
    return builder.close()


def _encoding(content: bytes) -> str:
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            return name
    if content[:2] in _BARE:
        return _BARE[content[:2]]
    if (declared := _ENCODING.match(content)) is None:
        return "utf-8"
    name = codecs.lookup(declared[1].decode()).name
    if not name.startswith(_TEXT):
        raise LookupError(f"the encoding {name} is not read")
    # One that takes two bytes a character would not have shown its declaration.
    return "utf-8" if name.startswith(("utf-16", "utf-32")) else name
