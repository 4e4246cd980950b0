"""The directory of an archive: one reading, or none."""

import io
import struct
import warnings
import zipfile

import pytest
import torch

from pbe_model.checkpoints.archive import read_directory

END = struct.Struct("<4s4H2IH")


def archive(
    entries: dict[str, bytes], method: int = zipfile.ZIP_STORED, wide: bool = False
) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as made:
        warnings.simplefilter("ignore")
        for name, content in entries.items():
            with made.open(name, "w", force_zip64=wide) as record:
                record.write(content)
    return buffer.getvalue()


PLAIN = archive({"a/data.pkl": b"}.", "a/data/0": b"12345678"})


def end_of(data: bytes, **changes: int) -> bytes:
    """The archive with another end: `here`, `count`, `size`, `begin` or `comment`."""
    names = ("mark", "disk", "first", "here", "count", "size", "begin", "comment")
    values = dict(zip(names, END.unpack(data[-END.size :]), strict=True)) | changes
    return data[: -END.size] + END.pack(*values.values())


@pytest.mark.parametrize("wide", [False, True], ids=["zip", "zip64 sizes"])
def test_records_are_found_where_they_are(wide):
    data = archive({"a/data.pkl": b"}.", "a/data/0": b"12345678"}, wide=wide)
    records = read_directory(data)
    assert [*records] == ["a/data.pkl", "a/data/0"]
    record = records["a/data/0"]
    assert data[record.begin : record.end] == b"12345678" and not record.packed


def test_torch_s_own_archives_have_one_reading(tmp_path):
    """They end twice, as archives of more than 4 GB do."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(5.0)}, path)
    data = path.read_bytes()
    assert b"PK\x06\x07" in data
    records = read_directory(data)
    with zipfile.ZipFile(path) as known:
        assert {name: data[r.begin : r.end] for name, r in records.items()} == {
            name: known.read(name) for name in known.namelist()
        }


def test_a_packed_record_is_marked():
    data = archive({"a": bytes(1000)}, zipfile.ZIP_DEFLATED)
    assert read_directory(data)["a"].packed


def replaced(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data
    return data.replace(old, new, count)


def twice() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as made:
        warnings.simplefilter("ignore")
        made.writestr("a", b"1")
        made.writestr("a", b"2")
    return buffer.getvalue()


def overlapping() -> bytes:
    """Two entries for the bytes of one record."""
    data = archive({"aa": b"1", "ab": b"1"})
    second = data.index(b"PK\x03\x04", 1)
    begin = data.index(b"PK\x01\x02")
    entry = data.rindex(b"PK\x01\x02")
    moved = data[entry : entry + 42] + struct.pack("<I", 0) + b"aa"
    size = len(data) - END.size - begin
    return (
        data[:second]
        + data[begin:entry]
        + moved
        + END.pack(b"PK\x05\x06", 0, 0, 2, 2, size, second, 0)
    )


HARM = {
    "nothing": (b"", "its end is missing"),
    "an end alone that is cut": (PLAIN[-10:], "its end is missing"),
    "bytes behind the end": (PLAIN + b"x", "its end is missing"),
    "a comment": (end_of(PLAIN, comment=1), "text follows its end"),
    "a directory elsewhere": (end_of(PLAIN, begin=3), "not where its end says"),
    "a directory that is smaller": (end_of(PLAIN, size=40), "not where its end says"),
    "an entry less": (end_of(PLAIN, here=1, count=1), "is not as long as its end says"),
    "an entry more": (end_of(PLAIN, here=3, count=3), "its directory is cut short"),
    "two numbers of entries": (end_of(PLAIN, here=1), "split into several files"),
    "a huge directory": (end_of(PLAIN, size=2**30), "8,388,608 are the most"),
    "other names inside": (replaced(PLAIN, b"a/data/0", b"a/data/1", 1), "differs from what"),
    "a record outside": (
        replaced(PLAIN, struct.pack("<II", 8, 8), struct.pack("<II", 999, 999)),
        "(overlap|outside|not what)",
    ),
    "a name twice": (twice(), "the same name"),
    "two entries of one record": (overlapping(), "(same name|overlap)"),
}


@pytest.mark.parametrize("kind", HARM)
def test_another_reading_is_refused(kind):
    data, reason = HARM[kind]
    with pytest.raises(ValueError, match=reason):
        read_directory(data)


def test_encryption_is_refused():
    data = bytearray(PLAIN)
    for mark, place in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(mark) + place] |= 1
    with pytest.raises(ValueError, match="encrypted"):
        read_directory(bytes(data))


def test_two_ends_have_to_agree(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(5.0)}, path)
    data = bytearray(path.read_bytes())
    wide = data.index(b"PK\x06\x06")
    data[wide + 32] += 1  # number of entries
    with pytest.raises(ValueError, match="two ends disagree"):
        read_directory(bytes(data))
