"""Zip archives that two programs read differently, that lie, or that unpack to gigabytes."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import torch

from .case import NO_MODEL, Case, Table, built, sparse
from .pickling import PROTO, program, records, table, tensor
from .zipping import Record, archive, two_faced, wide

_PICKLE, _ORDER, _DATA, _VERSION = records(program(table(state_dict=table(a=tensor()))))
_REST = (_ORDER, _DATA, _VERSION)
_BIG = 2**32 - 1
"""Of four bytes: the value stands elsewhere."""
_DEFLATED = {"method": 8, "size": 2**31}

_OTHER = "a record differs from what the directory says"
_OUTSIDE = "a record lies outside the file"
_END = "its end is missing, or something follows it"
_PLACE = "its directory is not where its end says"
_TWO_ENDS = "its two ends disagree"


class Script(torch.nn.Module):
    """TorchScript that writes a file as soon as `torch.jit.load` reads it."""

    def __init__(self):
        super().__init__()
        self.n = 5
        self.x = torch.zeros(1, dtype=torch.uint8)

    @torch.jit.export
    def __getstate__(self):
        return (self.n, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]):
        self.n = state[0]
        self.training = state[1]
        x = torch.from_file("ran-by-file", True, 16, dtype=torch.uint8)
        for i in range(16):
            x[i] = 65
        self.x = x

    def forward(self, x):
        return x


def script() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        torch.jit.save(torch.jit.script(Script()), buffer)
    return buffer.getvalue()


def _two_faced_script() -> bytes:
    hidden = script()
    count = hidden.count(b"PK\1\2")
    return two_faced(hidden, archive(*(Record(f"a/{i}") for i in range(count))))


def _bomb(*, honest: bool) -> Record:
    """Three megabytes that unpack to three gigabytes of pickle, in pieces that are packed once."""
    packer, piece = (zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2))
    packed = packer.compress(PROTO) + packer.flush(zlib.Z_FULL_FLUSH)
    lists = piece.compress(b"]" * 2**20) + piece.flush(zlib.Z_FULL_FLUSH)
    packed += lists * 3000 + b"\x03\x00"
    claimed = {"method": 8, "size": 3000 * 2**20 + len(PROTO)}
    return Record("archive/data.pkl", packed, claimed if honest else {}, claimed)


def _large_record(name: str, data: bytes) -> Case:
    """A record of two gigabytes that take no room on the disk."""
    size = 2**31

    def make(path: Path) -> None:
        fields = {"packed": size, "size": size, "crc": 0}
        others = [record for record in (_PICKLE, _ORDER) if record.name != name]
        start = archive(*others, Record(name, data, fields, fields))
        begin = start.index(b"PK\1\2")
        directory, end = start[begin:-22], bytearray(start[-22:])
        whole = begin - len(data) + size
        struct.pack_into("<I", end, 16, whole)
        sparse(start[:begin], whole)(path)
        with path.open("ab") as file:
            file.write(directory + end)

    says = "little-endian order" if name.endswith("byteorder") else "its pickle has more than"
    return Case(make, says)


def _many_fields() -> bytes:
    """Entries whose one needed field stands behind 16,000 empty ones each."""
    idle = struct.pack("<HH", 7, 0) * 16_000
    lies = {"size": _BIG, "packed": _BIG}
    return archive(*(Record(f"a/{i}", b"", {}, lies, idle + wide(0, 0)) for i in range(120)))


def _lying(says: str, change: Record, *rest: Record) -> Case:
    return Case(built(lambda: archive(change, *(rest or _REST))), says)


def _ended(says: str, **lies) -> Case:
    return Case(built(lambda: archive(_PICKLE, *_REST, **lies)), says)


def _pickled(**lies) -> Record:
    """The record of the pickle, both of whose headers lie."""
    return _PICKLE._replace(local=lies, entry=lies)


FILES: Table = {
    # ---- two readings
    "two_faced_script.ckpt": Case(built(_two_faced_script), _PLACE),
    "two_faced_bomb.ckpt": Case(
        built(
            lambda: two_faced(
                archive(_bomb(honest=True), Record("archive/version", b"3\n")),
                archive(Record("a/0"), Record("a/1")),
            )
        ),
        _PLACE,
    ),
    "gap.ckpt": _ended(_PLACE, gap=b" " * 46),
    "comment.ckpt": _ended(_END, end={"comment": 3}, behind=b"abc"),
    "comment_is_an_end.ckpt": _ended(_PLACE, end={"comment": 22}, behind=archive()),
    "behind.ckpt": _ended(_END, behind=b"\0"),
    "second_archive.ckpt": Case(
        built(lambda: archive(_PICKLE, *_REST) + archive(_PICKLE, *_REST)), _PLACE
    ),
    "shifted.ckpt": Case(built(lambda: b"PK\3\4" + archive(_PICKLE, *_REST)), _PLACE),
    "split.ckpt": _ended("split into several files", end={"disk": 1}),
    "starts_elsewhere.ckpt": _ended("split into several files", end={"first": 1}),
    "counts_differ.ckpt": _ended("split into several files", end={"here": 3}),
    "fewer.ckpt": _ended("is not as long as its end says", end={"here": 3, "count": 3}),
    "more.ckpt": _ended("its directory is cut short", end={"here": 5, "count": 5}),
    "end64_counts.ckpt": _ended(_TWO_ENDS, end64={"count": 3, "here": 3}),
    "end64_offset.ckpt": _ended(_TWO_ENDS, end64={"offset": 0}),
    "end64_alone.ckpt": _ended(
        _PLACE, end={"offset": _BIG, "size": _BIG}, end64={"offset": 2**63, "size": 46}
    ),
    "end64_longer.ckpt": _ended(_TWO_ENDS, end64={"length": 2**40}),
    "end64_mark.ckpt": _ended(_TWO_ENDS, end64={"mark": b"PK\5\6"}),
    "end64_elsewhere.ckpt": _ended("its end is not where it says", end64={}, locator={"offset": 0}),
    "end64_split.ckpt": _ended("its end is not where it says", end64={}, locator={"disks": 7}),
    "twice.ckpt": _lying("two of its records have the same name", _PICKLE, _PICKLE, *_REST),
    "renamed.ckpt": _lying(_OTHER, _PICKLE._replace(named="archive/data.pkm")),
    "two_pickles.ckpt": _lying("2 records named data.pkl", Record("b/data.pkl"), _PICKLE, *_REST),
    "no_pickle.ckpt": _lying("it has 0 records named data.pkl", *_REST),
    "elsewhere.ckpt": _lying(
        "it has 0 records named data.pkl", Record("../../ran-by-file/data.pkl", _PICKLE.data)
    ),
    "script.ckpt": Case(built(script), "TorchScript"),
    "constants.ckpt": _lying("TorchScript", Record("archive/constants.pkl"), _PICKLE, *_REST),
    # ---- records that are not what they say
    "overlap.ckpt": _lying(
        "its records overlap",
        Record("a/0", archive(_PICKLE)),
        _PICKLE._replace(entry={"offset": 33}),
    ),
    "into_the_directory.ckpt": _lying(
        "its records overlap",
        _ORDER,
        _DATA,
        Record("archive/version", b"3\n", *({"packed": 9, "size": 9},) * 2),
    ),
    "past_the_end.ckpt": _lying(_OUTSIDE, _pickled(packed=2**30, size=2**30)),
    "begins_past_the_end.ckpt": _lying(_OUTSIDE, _PICKLE._replace(entry={"offset": 2**31})),
    "begins_at_2_63.ckpt": _lying(
        _OUTSIDE, _PICKLE._replace(entry={"offset": _BIG}, extra=wide(2**63))
    ),
    "begins_in_another.ckpt": _lying(_OTHER, _PICKLE._replace(entry={"offset": 3})),
    "encrypted.ckpt": _lying("encrypted or of an unknown kind", _pickled(flags=1)),
    "masked.ckpt": _lying("encrypted or of an unknown kind", _pickled(flags=1 << 13)),
    "encrypted_inside.ckpt": _lying(_OTHER, _PICKLE._replace(local={"flags": 1})),
    "packed_inside.ckpt": _lying(_OTHER, _PICKLE._replace(local={"method": 8})),
    "size_inside.ckpt": _lying(_OTHER, _PICKLE._replace(local={"size": 7})),
    "grows.ckpt": _lying("claims to unpack to more than it holds", _pickled(size=2**31)),
    "packed.ckpt": _lying("it is a compressed archive", _pickled(**_DEFLATED)),
    "packed_somehow.ckpt": _lying("it is a compressed archive", _pickled(method=99)),
    "packed_weights.ckpt": _lying(
        "it is a compressed archive", _PICKLE, _DATA._replace(local=_DEFLATED, entry=_DEFLATED)
    ),
    "no_wide_size.ckpt": _lying(
        "its directory lacks a size", _PICKLE._replace(entry={"size": _BIG, "packed": _BIG})
    ),
    "half_a_wide_size.ckpt": _lying(
        "its directory lacks a size", _PICKLE._replace(entry={"size": _BIG}, extra=wide(1)[:-1])
    ),
    "changed.ckpt": _lying("has changed since it was written", _pickled(crc=1)),
    "not_an_entry.ckpt": _lying(
        "its directory is damaged", _PICKLE._replace(entry={"mark": b"PK\1\3"})
    ),
    "other_disk.ckpt": _lying("its directory is damaged", _PICKLE._replace(entry={"disk": 1})),
    "long_name.ckpt": _lying("its directory is damaged", _PICKLE._replace(entry={"name": 60_000})),
    "big_endian.ckpt": _lying(
        "not in little-endian order", _PICKLE, _ORDER._replace(data=b"big"), _DATA
    ),
    "names.ckpt": Case(
        built(lambda: archive(_PICKLE, Record("archive/\x1b[31m\n/../data/0", b"1"), *_REST)),
        NO_MODEL,
    ),
    # ---- too much
    "bomb.ckpt": Case(built(lambda: archive(_bomb(honest=True))), "it is a compressed archive"),
    "hidden_bomb.ckpt": Case(built(lambda: archive(_bomb(honest=False))), _OTHER),
    "long_directory.ckpt": Case(
        built(lambda: archive(*(Record(f"a/{i}", comment=b"a" * 60_000) for i in range(150)))),
        "its directory has 9,",
    ).briefly(),
    "longest_directory.ckpt": _ended("its directory has 4,294,967,294", end={"size": _BIG - 1}),
    "many_records.ckpt": Case(
        built(lambda: archive(*(Record(f"a/{i}") for i in range(40_000)))),
        "0 records named data.pkl",
    ).briefly(),
    "many_fields.ckpt": Case(built(_many_fields), "0 records named data.pkl").briefly(),
    "large_order.ckpt": _large_record("archive/byteorder", b"little"),
    "large_pickle.ckpt": _large_record("archive/data.pkl", PROTO),
    # ---- cut short
    "cut.ckpt": Case(built(lambda: archive(_PICKLE, *_REST)[:-1]), _END),
    "start.ckpt": Case(built(lambda: b"PK\3\4"), _END),
    "end_alone.ckpt": Case(built(archive), "it does not begin like one"),
}
