"""Coverage-guided fuzzing of the reader of torch files (atheris, which drives libFuzzer).

    python -m tests.soak.fuzz_torch_file [libFuzzer's options] FOLDER ... tests/soak/corpus

`make soak` runs it. The first byte of an input says what the rest is: a whole file, the pickle of
an archive, or that of a file of before torch 1.6; so the fuzzer need not find out how an archive is
written to get at the pickle. Whatever the input, the reader gives tensors that lie in the file or
raises `ValueError`, soon, and torch is afterwards what it was.
"""

import io
import struct
import sys
import zipfile

import atheris

with atheris.instrument_imports(
    include=[
        "pbe_model.checkpoints.archive",
        "pbe_model.checkpoints.unpickle",
        "pbe_model.checkpoints.torch_file",
    ]
):
    import torch

    from pbe_model.checkpoints import torch_file
    from pbe_model.checkpoints.unpickle import Storage, TensorRecord

DEFAULTS = torch._utils._rebuild_tensor_v2.__defaults__
STORAGES = {"0": bytes(range(64)), "1": b"", "2": bytes(6)}
LEGACY_START = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    b"\x80\x02}X\r\x00\x00\x00little_endian\x88s."
)
LEGACY_END = b"\x80\x02](X\x01\x00\x00\x000e."


def whole(data: bytes) -> bytes:
    """A file as it is."""
    return data


def archive_of(data: bytes) -> bytes:
    """An archive whose pickle this is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for key, content in STORAGES.items():
            archive.writestr(f"a/data/{key}", content)
    return buffer.getvalue()


def legacy_of(data: bytes) -> bytes:
    """A file of before torch 1.6 whose pickle this is."""
    return LEGACY_START + data + LEGACY_END + struct.pack("<q", 16) + STORAGES["0"]


KINDS = (whole, archive_of, legacy_of)


def read(data: bytes) -> None:
    """Read one input and look at what comes of it."""
    if not data:
        return
    file = bytearray(KINDS[data[0] % len(KINDS)](data[1:]))
    try:
        value = torch_file.read_buffer(file, file, set(), mapped=data[0] < 128, checked=False)
    except ValueError as error:
        assert len(str(error)) < 1000
        return
    limit = torch_file._CLAIM * len(file) + torch_file._SMALL_CLAIM
    assert sum(tensor.nbytes for tensor in tensors(value)) <= limit
    assert torch._utils._rebuild_tensor_v2.__defaults__ == DEFAULTS


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors in a result, each once; nothing else may be in it than the reader promises."""
    found, seen, left = [], set(), [value]
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        assert not isinstance(item, (Storage, TensorRecord)), item
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, torch.Tensor):
            item.clone()  # reads every value
            found.append(item)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
