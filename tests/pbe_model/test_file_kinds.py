"""Files are told by their first bytes."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from pbe_model.file_kinds import HEAD, is_heif, what_it_really_is


def picture(format: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format)
    return file.getvalue()


def torch_file(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def zip_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.png", b"a")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 42\n"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n  <!-- a --> <!-- b -->\n<HTML lang=en>", "an HTML page"),
        ("<html>".encode("utf-16"), "an HTML page"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html xmlns="x">', "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (LFS, "a Git LFS pointer"),
        (b'{"error": "no such model"}', "a JSON text"),
        (b"Entry not found", "a text file"),
        ("é".encode() * HEAD, "a text file"),
        (b"", "an empty file"),
        (bytes(100), "a file of zeros"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"GGUF\3\0\0\0", "a GGUF model"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\0\0\0\x1cftypisom\0\0\2\0isomiso2", "a video"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "a HEIF photo"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf", "an AVIF picture"),
        (save({"a": torch.zeros(3)}), "a safetensors file"),
        (torch_file(True), "a PyTorch file"),
        (torch_file(False), "a Python pickle"),
        (pickle.dumps([1]), "a Python pickle"),
        (zip_file(), "a ZIP archive"),
        (npy(), "a NumPy array"),
        *((picture(it), it) for it in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF")),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_kinds(content: bytes, kind: str) -> None:
    found = what_it_really_is(content[:HEAD])
    assert found is not None
    if kind == "WEBP":
        assert found == "a WebP picture"
    elif kind.isupper():
        assert found.endswith(f" {kind} picture")
    else:
        assert found.startswith(kind)


def test_bytes_that_tell_nothing() -> None:
    noise = np.random.default_rng(0).bytes(HEAD)
    assert what_it_really_is(noise) is None
    for length in range(1, 20):  # nothing depends on there being more
        what_it_really_is(noise[:length])
        what_it_really_is(b"\0\0\0\x20ftypmif1\0\0\0\0mif1"[:length])
        what_it_really_is(b"PK\3\4RIFF"[:length])


def test_heif_is_not_avif() -> None:
    assert is_heif(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
    assert not is_heif(picture("AVIF")) and not is_heif(picture("PNG")) and not is_heif(b"")
