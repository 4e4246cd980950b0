"""Photos in uncompressed tar shards, read by offset: on disk, or by ranges from S3 and the web.

A million small files are slow to copy, to list and to read over a network. Here a shard is a plain
tar that webdataset reads too (members `000000012.jpg` and `000000012.json`), and the box index says
in which bytes of it a photo lies: so any photo can be had in any order with a single read.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import tarfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from pbe_model.picture_headers import MAX_BYTES
from pbe_model.untrusted import first_line, open_regular, parse_json, printable, shown
from training.data.decode import read_photo
from training.data.index import BoxIndex
from training.data.index_format import Photo, PhotoBoxes

log = logging.getLogger(__name__)

OPEN_FILES = 128  # per process; a shell often allows 1024
_LONGEST_SUFFIX = 16  # a header has little room
_MAX_RECORD = 2**24  # bytes of a photo's boxes in a shard


class ShardWriter:
    """Packs photos into `shard-000000.tar`, `shard-000001.tar`, and so on.

    A shard has its name only when it is whole. The same photos give the same bytes.

    Args:
        folder: Where the shards go; made if need be.
        max_bytes: A shard that would become larger is closed first. A photo that is larger by
            itself has a shard of its own.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 10**9) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.names: list[str] = []
        """Shards begun so far, relative to the folder: what `shards` of `index.json` lists."""
        self._count = 0
        self._file: io.BufferedWriter | None = None

    def __enter__(self) -> ShardWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
            self._partial.unlink()

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.names[-1]}.partial"

    def add(self, photo: PhotoBoxes, data: bytes) -> PhotoBoxes:
        """Append a photo.

        Args:
            photo: Its path, size, boxes and labels go into the shard as well.
            data: The bytes of its file, taken as they are.

        Returns:
            `photo` with shard, offset and length, for the index.
        """
        record = {
            "path": photo.path,
            "size": list(photo.size),
            "boxes": np.asarray(photo.boxes).tolist(),
            "labels": photo.labels,
        }
        name = f"{self._count:09d}"  # webdataset ends a key at its first dot, so no file names
        suffix = PurePosixPath(photo.path).suffix.lower()
        suffix = suffix if 1 < len(suffix) <= _LONGEST_SUFFIX else ".jpg"
        image = _member(name + suffix, data)
        text = _member(name + ".json", json.dumps(record).encode())
        used = self._file.tell() if self._file is not None else 0
        if used + len(image) + len(text) + tarfile.RECORDSIZE > self.max_bytes:
            self._finish()
        if self._file is None:
            self.names.append(f"shard-{len(self.names):06d}.tar")
            self._file = self._partial.open("wb")
        offset = self._file.tell() + tarfile.BLOCKSIZE
        self._file.write(image + text)
        self._count += 1
        return replace(photo, shard=len(self.names) - 1, offset=offset, length=len(data))

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._partial.replace(self.folder / self.names[-1])


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # no times and no owners: the same photos, the same bytes
    info.size = len(data)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    assert len(header) == tarfile.BLOCKSIZE, name
    return header + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def read_shard(path: str | Path, number: int) -> Iterator[PhotoBoxes]:
    """Photos of a shard that `ShardWriter` made, to index it once more.

    Args:
        path: The shard.
        number: What the index calls it.

    Raises:
        ValueError: It is no such shard.
    """
    try:
        with open_regular(path) as file:
            yield from _read_members(file, number)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"'{printable(path)}' is no shard of 'pbe-train prepare' ({first_line(error)}); "
            "make it anew"
        ) from error


def _read_members(file: BinaryIO, number: int) -> Iterator[PhotoBoxes]:
    """Photos by the headers as `_member` writes them; other kinds of them are not even parsed."""
    total = os.fstat(file.fileno()).st_size
    image: tuple[int, int] | None = None
    while True:
        header = file.read(tarfile.BLOCKSIZE)
        if header == bytes(tarfile.BLOCKSIZE):  # the end
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        name, offset, length = shown(member.name, 80), file.tell(), member.size
        if member.type != tarfile.REGTYPE:
            raise ValueError(f"'{name}' is not a regular file")
        if not 0 <= length <= total - offset:
            raise ValueError(f"'{name}' claims {length:,} bytes, and {total - offset:,} are left")
        if not member.name.endswith(".json"):
            image = offset, length
        elif image is None:
            raise ValueError(f"there is no photo before '{name}'")
        elif length > _MAX_RECORD:
            raise ValueError(f"'{name}' has {length:,} bytes, and {_MAX_RECORD:,} are the most")
        else:
            photo = PhotoBoxes.from_json(parse_json(file.read(length)))
            yield replace(photo, shard=number, offset=image[0], length=image[1])
        file.seek(offset + length + -length % tarfile.BLOCKSIZE)


class PhotoFiles:
    """The bytes of an index's photos, whether files or members of shards.

    Files are opened in each process when first needed, so it can be handed to workers however they
    are started. Not for several threads at once.

    Args:
        index: Its `meta` may hold `photos`, the folder or URL that paths or shards start from
            (relative to `root`, by default `root` itself), and `shards`, their names or URLs.
        root: Folder of the data set.
        tries: Attempts at a range of a remote shard before giving up.
        wait: Seconds before the second attempt; each later one waits twice as long.

    Raises:
        ValueError: A shard on disk is missing, photos at a URL are not in shards, or shards are at
            a URL and `fsspec` is not installed.
    """

    def __init__(
        self, index: BoxIndex, root: str | Path, *, tries: int = 5, wait: float = 0.5
    ) -> None:
        base = str(index.meta.get("photos", ""))
        self._folder = base if _is_url(base) else str(Path(root) / base)
        self._shards = [self._place(name) for name in index.meta.get("shards", [])]
        self._ranges = RangeReader(tries=tries, wait=wait)
        if not self._shards and _is_url(self._folder):
            raise ValueError(
                f"photos at {shown(self._folder)} can only be read from shards; "
                "make them with 'pbe-train prepare'"
            )
        for shard in self._shards:
            if _is_url(shard):
                _import_fsspec(shard)
            elif not os.path.isfile(shard):
                raise ValueError(
                    f"the index names the shard '{shown(shard)}', which does not exist; copy it "
                    "there, or correct 'photos' in index.json"
                )

    def _place(self, name: str) -> str:
        if _is_url(name):
            return name
        if _is_url(self._folder):
            return f"{self._folder.rstrip('/')}/{name}"
        return str(Path(self._folder) / name)

    def read(self, photo: Photo) -> bytes:
        """All bytes of a photo's file.

        Raises:
            OSError: It is missing, not a regular file, too large, or ends too early.
            ValueError: A remote shard cannot be reached, after all attempts.
        """
        if photo.place is None:
            return read_photo(Path(self._folder, photo.path))
        shard, offset, length = photo.place
        if length > MAX_BYTES:
            raise OSError(f"has {length:,} bytes, and {MAX_BYTES:,} are the most")
        return self._ranges.read(self._shards[shard], offset, length)


class RangeReader:
    """Reads ranges of bytes of files and URLs.

    Args:
        tries: Attempts at a URL before giving up.
        wait: Seconds before the second attempt; each later one waits twice as long.
    """

    def __init__(self, *, tries: int = 5, wait: float = 0.5) -> None:
        self.tries = tries
        self.wait = wait
        self._files: OrderedDict[str, int] = OrderedDict()  # descriptors, least recently used first

    def __reduce__(self) -> tuple[Any, ...]:
        return _range_reader, (self.tries, self.wait)

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def read(self, location: str, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on.

        Raises:
            OSError: A file is missing or ends too early.
            ValueError: A URL cannot be read: it does not exist, ends too early, its server knows no
                ranges, or all attempts failed.
        """
        if _is_url(location):
            return self._read_url(location, offset, length)
        parts = []
        while length:
            # A position of its own in each call: processes may share the descriptor after a fork.
            part = os.pread(self._descriptor(location), length, offset)
            if not part:
                raise OSError(
                    f"'{shown(location)}' ends at byte {offset}, {length} bytes too early"
                )
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def _descriptor(self, path: str) -> int:
        descriptor = self._files.pop(path, None)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._files[path] = descriptor
        if len(self._files) > OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return descriptor

    def _read_url(self, url: str, offset: int, length: int) -> bytes:
        fsspec = _import_fsspec(url)
        failed: Exception | None = None
        for attempt in range(self.tries):
            if failed is not None:
                log.warning("%s: %s; trying again", shown(url), _named(failed))
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                # fsspec keeps file systems by protocol and process, so this opens one only once.
                system, path = fsspec.core.url_to_fs(url)
                data = system.cat_file(path, start=offset, end=offset + length)
            except Exception as error:  # every file system has errors of its own
                failed = error
                if _is_final(error):
                    break
            else:
                if len(data) == length:
                    return data
                if len(data) > length:
                    raise ValueError(
                        f"the server of {shown(url)} ignores ranges: asked for {length} bytes it "
                        f"sent {len(data)}; serve the shards from one that knows them, or copy them"
                    )
                failed = OSError(f"got {len(data)} of {length} bytes from byte {offset} on")
        assert failed is not None
        raise ValueError(
            f"cannot read {shown(url)} ({_named(failed)}); check the address, the access and the "
            "network, then start the same command again"
        ) from failed


def _range_reader(tries: int, wait: float) -> RangeReader:
    return RangeReader(tries=tries, wait=wait)


def _is_url(location: str) -> bool:
    return "://" in location


def _import_fsspec(url: str) -> Any:
    protocol = url.split("://")[0]
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"reading {shown(url)} needs a package that is missing ({first_line(error)}); "
            "install paint-by-example[remote]"
        ) from error
    return fsspec


def _is_final(error: Exception) -> bool:
    """Whether another attempt is useless: not there, not allowed, or the request is wrong."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotImplementedError)):
        return True
    status = getattr(error, "status", None)  # aiohttp's
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)


def _named(error: Exception) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "timed out"
    return f"{type(error).__name__}: {shown(str(error))}"
