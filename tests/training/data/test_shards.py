"""Shards: tar files that others read too, any photo by its bytes, from disk and from a server."""

from __future__ import annotations

import json
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from training.data import shards as shards_module
from training.data.index import BoxIndex
from training.data.index_format import PhotoBoxes
from training.data.index_writer import IndexWriter
from training.data.shards import PhotoFiles, RangeReader, ShardWriter, read_shard

COUNT = 12


def content(number: int) -> bytes:
    """Bytes of a pretended photo, of any length, also of whole blocks of a tar."""
    length = (1, 512, 1000, 1024)[number % 4]
    return np.random.default_rng(number).bytes(length)


def photo(number: int) -> PhotoBoxes:
    return PhotoBoxes(
        path=f"ordner {number % 2}/größe.v{number}.JPG",
        size=(40, 30),
        boxes=np.array([[1, 2, 30, 20]]),
        labels=["犬"],
    )


def write(root: Path, *, max_bytes: int = 20_000, base: str = "shards") -> BoxIndex:
    """Shards in `root/shards` and an index over them."""
    root.mkdir(parents=True, exist_ok=True)
    with IndexWriter(root / "index") as index:
        with ShardWriter(root / "shards", max_bytes) as writer:
            for number in range(COUNT):
                index.add(writer.add(photo(number), content(number)))
        index.close({"photos": base, "shards": writer.names})
    return BoxIndex.open(root / "index")


def assert_reads(index: BoxIndex, files: PhotoFiles) -> None:
    for number in reversed(range(COUNT)):
        assert files.read(index.photo(number)) == content(number)


# ---- on disk -----------------------------------------------------------------------------------


def test_photos_are_read_by_their_places(tmp_path: Path) -> None:
    index = write(tmp_path)
    assert len(index.meta["shards"]) > 1
    assert all(
        (tmp_path / "shards" / name).stat().st_size <= 20_000 for name in index.meta["shards"]
    )
    assert_reads(index, PhotoFiles(index, tmp_path))


def test_any_tar_reader_finds_pairs_with_keys_of_their_own(tmp_path: Path) -> None:
    index = write(tmp_path)
    found = []
    for name in index.meta["shards"]:
        with tarfile.open(tmp_path / "shards" / name) as shard:
            members = shard.getmembers()
            for image, text in zip(members[::2], members[1::2], strict=True):
                # As webdataset groups them: the key ends at the first dot.
                assert image.name.split(".") == [text.name.split(".")[0], "jpg"]
                assert text.name.endswith(".json")
                found.append((shard.extractfile(image).read(), json.load(shard.extractfile(text))))
    assert [data for data, _ in found] == [content(number) for number in range(COUNT)]
    assert [record["path"] for _, record in found] == [photo(n).path for n in range(COUNT)]
    assert found[0][1]["boxes"] == [[1, 2, 30, 20]] and found[0][1]["labels"] == ["犬"]


def test_shards_can_be_indexed_once_more(tmp_path: Path) -> None:
    index = write(tmp_path)
    with IndexWriter(tmp_path / "again") as writer:
        for number, name in enumerate(index.meta["shards"]):
            for entry in read_shard(tmp_path / "shards" / name, number):
                writer.add(entry)
        writer.close({"photos": "shards", "shards": index.meta["shards"]})
    for name in ("boxes.npy", "photos.npy", "places.npy", "paths.bin", "index.json"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    (tmp_path / "no.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"no\.tar' is no shard"):
        list(read_shard(tmp_path / "no.tar", 0))


def test_the_same_photos_give_the_same_shards(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    assert one.digest == other.digest
    for name in one.meta["shards"]:
        first, second = (tmp_path / run / "shards" / name for run in ("one", "other"))
        assert first.read_bytes() == second.read_bytes()


def test_a_photo_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    index = write(tmp_path, max_bytes=1)
    assert len(index.meta["shards"]) == COUNT
    assert_reads(index, PhotoFiles(index, tmp_path))


def test_an_interrupted_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, 12_000) as writer:
            for number in range(COUNT):
                writer.add(photo(number), content(number))
                if len(writer.names) == 2:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]
    assert len(list(read_shard(tmp_path / "shard-000000.tar", 0))) > 0


def test_a_truncated_shard_loses_its_last_photos_only(tmp_path: Path) -> None:
    index = write(tmp_path)
    files = PhotoFiles(index, tmp_path)
    first = tmp_path / "shards" / index.meta["shards"][0]
    last = max(n for n in range(COUNT) if index.photo(n).place.shard == 0)
    with first.open("r+b") as file:
        file.truncate(index.photo(last).place.offset)
    with pytest.raises(OSError, match="bytes too early"):
        files.read(index.photo(last))
    assert files.read(index.photo(0)) == content(0)


def test_a_missing_shard_is_named_at_once(tmp_path: Path) -> None:
    index = write(tmp_path)
    (tmp_path / "shards/shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"shard-000001\.tar', which does not exist"):
        PhotoFiles(index, tmp_path)


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "OPEN_FILES", 2)
    index = write(tmp_path, max_bytes=1)
    files = PhotoFiles(index, tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert_reads(index, files)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2
    del files
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- from a server -----------------------------------------------------------------------------


@dataclass
class Server:
    """A web server of a folder."""

    url: str
    ranges: bool = True
    failures: list[int] = field(default_factory=list)
    """Status codes that the next answers have; 0 hangs up, 1 sends half of the bytes."""
    requests: int = 0


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            server.requests += 1
            failure = server.failures.pop(0) if server.failures else None
            if failure == 0:
                self.close_connection = True
                self.connection.close()
                return
            if failure is not None and failure > 1:
                self.send_error(failure)
                return
            requested = self.headers.get("Range")
            path = Path(self.translate_path(self.path))
            if not server.ranges or not requested or not path.is_file():
                super().do_GET()
                return
            first, last = map(int, requested.removeprefix("bytes=").split("-"))
            data = path.read_bytes()[first : last + 1]
            data = data[: len(data) // 2] if failure == 1 else data
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(f"http://127.0.0.1:{running.server_address[1]}")
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield server
        running.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


def remote(index: BoxIndex, server: Server, root: Path, **options) -> PhotoFiles:
    index.meta["photos"] = f"{server.url}/shards"
    return PhotoFiles(index, root, wait=0.001, **options)


def test_ranges_of_a_server_are_what_the_disk_holds(tmp_path: Path, server: Server) -> None:
    index = write(tmp_path)
    assert_reads(index, remote(index, server, tmp_path / "elsewhere"))
    assert server.requests == COUNT


def test_any_file_system_of_fsspec_serves(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    index = write(tmp_path)
    for name in index.meta["shards"]:
        fsspec.filesystem("memory").pipe(
            f"/bucket/{name}", (tmp_path / "shards" / name).read_bytes()
        )
    index.meta["photos"] = "memory://bucket/"
    assert_reads(index, PhotoFiles(index, tmp_path))


def test_a_server_without_ranges_is_refused(tmp_path: Path, server: Server) -> None:
    index = write(tmp_path)
    server.ranges = False
    files = remote(index, server, tmp_path)
    with pytest.raises(ValueError, match=rf"{server.url}/shards/shard-000000\.tar ignores ranges"):
        files.read(index.photo(0))


@pytest.mark.parametrize("failure", [0, 1, 429, 500, 503])
def test_passing_failures_are_tried_again(
    tmp_path: Path, server: Server, failure: int, caplog: pytest.LogCaptureFixture
) -> None:
    index = write(tmp_path)
    files = remote(index, server, tmp_path)
    assert index.photo(3).place is not None and len(content(3)) == 1024
    server.failures = [failure] * 2
    assert files.read(index.photo(3)) == content(3)
    assert server.requests == 3
    assert "trying again" in caplog.text and server.url in caplog.text


@pytest.mark.parametrize(
    ("failures", "requests", "reason"),
    [([503] * 9, 4, "503"), ([1] * 9, 4, "512 of 1024 bytes"), ([403], 1, "403"), ([404], 1, "")],
)
def test_lasting_failures_name_the_address(
    tmp_path: Path, server: Server, failures: list[int], requests: int, reason: str
) -> None:
    index = write(tmp_path)
    files = remote(index, server, tmp_path, tries=4)
    server.failures = failures
    message = rf"cannot read {server.url}/shards/shard-000000\.tar .*{reason}.*; check the address"
    with pytest.raises(ValueError, match=message):
        files.read(index.photo(3))
    assert server.requests == requests


def test_without_fsspec_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"http://h/a\.tar needs .* paint-by-example\[remote\]"):
        RangeReader().read("http://h/a.tar", 0, 1)


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reading ftq://a/b\.tar needs a package"):
        RangeReader().read("ftq://a/b.tar", 0, 1)


def test_single_files_at_an_address_are_refused(tmp_path: Path) -> None:
    with IndexWriter(tmp_path / "index") as writer:
        writer.add(photo(0))
        writer.close({"photos": "https://example.org/photos"})
    with pytest.raises(ValueError, match="can only be read from shards"):
        PhotoFiles(BoxIndex.open(tmp_path / "index"), tmp_path)


# ---- in other processes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("fork", "disk"),
        ("fork", "server"),
        pytest.param("spawn", "server", marks=pytest.mark.slow),  # imports torch in each process
    ],
)
def test_readers_in_use_can_be_handed_to_processes(tmp_path: Path, method: str, where: str) -> None:
    index = write(tmp_path)
    photos = [index.photo(number) for number in range(COUNT)]
    with serving(tmp_path) as server:
        files = PhotoFiles(index, tmp_path) if where == "disk" else remote(index, server, tmp_path)
        assert files.read(photos[1]) == content(1)
        with ProcessPoolExecutor(2, get_context(method)) as pool:
            elsewhere = list(pool.map(files.read, photos))
        assert elsewhere == [content(number) for number in range(COUNT)]
        assert_reads(index, files)
