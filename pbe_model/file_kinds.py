"""What a file is by its first bytes, whatever its name says: for the sentence that refuses it.

Downloads that failed leave a web page or a pointer behind, and files are renamed by people and by
tools. "Damaged" would send the user looking in the wrong place.
"""

from __future__ import annotations

import struct

HEAD = 1024
"""How many first bytes of a file are enough."""

_LFS = "a Git LFS pointer (fetch the file itself with git lfs pull)"
_PAGE = "an HTML page (download the file itself, not the page about it)"

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/", _LFS),
    (b"version https://hawser.github.com/", _LFS),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"II*\0\x10\0\0\0CR", "a camera's raw photo (develop it to a JPEG or PNG)"),
    (b"FUJIFILMCCD-RAW", "a camera's raw photo (develop it to a JPEG or PNG)"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"II+\0", "a TIFF picture"),
    (b"MM\0+", "a TIFF picture"),
    (b"8BPS", "a Photoshop document (export it as PNG)"),
    (b"gimp xcf", "a GIMP document (export it as PNG)"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
    (b"BZh", "a bzip2 archive (unpack it)"),
    (b"\xfd7zXZ\0", "an xz archive (unpack it)"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (unpack it)"),
    (b"Rar!\x1a\x07", "a RAR archive (unpack it)"),
)
_RIFF = {b"WEBP": "a WebP picture", b"AVI ": "a video", b"WAVE": "a sound recording"}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_PAGE_BEGINNINGS = ("<!doctype html", "<html", "<head", "<body", "<script", "<title", "<meta")


def what_it_really_is(head: bytes) -> str | None:
    """Names the kind of a file, to be read after "it is".

    Args:
        head: Its first `HEAD` bytes, or all where there are fewer.

    Returns:
        A noun with its article, such as "an HTML page (...)", with the remedy in brackets where
        there is one for that kind; None where the bytes tell nothing.
    """
    if not head:
        return "an empty file"
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if not any(head):
        return "a file of zeros (download or copy it again)"
    return _container(head) or _weights(head) or _text(head)


def is_heif(head: bytes) -> bool:
    """Whether a file is a HEIF picture, as iPhones take them; AVIF is none of these."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head[8:40]


def _container(head: bytes) -> str | None:
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "a BMP picture"
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it)"
    if head.startswith(b"PK\3\4"):
        length = int.from_bytes(head[26:28], "little")
        is_torch = head[30 : 30 + length].endswith(b"/data.pkl")
        return "a PyTorch file" if is_torch else "a ZIP archive (unpack it)"
    if head[4:8] != b"ftyp":
        return None
    if is_heif(head):
        return "a HEIF photo"
    if head[8:12] == b"crx ":
        return "a camera's raw photo (develop it to a JPEG or PNG)"
    return "an AVIF picture" if b"avi" in head[8:40] else "a video"


def _weights(head: bytes) -> str | None:
    if len(head) > 8 and head[8:9] == b"{":
        (length,) = struct.unpack_from("<Q", head)
        if 2 <= length < 2**32 and head[9:10] in b'"} \n\t':
            return "a safetensors file"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle, such as an old PyTorch file"
    return None


def _text(head: bytes) -> str | None:
    try:
        utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = head.decode("utf-16" if utf16 else "utf-8-sig", "ignore" if utf16 else "strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) < HEAD:  # not merely a character cut in two
            return None
        text = head[: error.start].decode("utf-8-sig")
    start = text.lstrip().lower()
    while start.startswith("<!--") and "-->" in start:
        start = start.partition("-->")[2].lstrip()
    if start.startswith(_PAGE_BEGINNINGS):
        return _PAGE
    if start.startswith(("<?xml", "<svg")):
        if "<svg" in start:
            return "an SVG drawing (export it as PNG)"
        return _PAGE if "<html" in start else "an XML document"
    if any(character < " " and character not in "\t\n\r\f" for character in text):
        return None
    return "a JSON text" if start.startswith(("{", "[")) else "a text file"
