"""Tries hostile files in a process that tells what each of them did.

Reads lines of JSON: a kind of file, a folder, and names of files in it, each with the entries that
try it (all where there are none). Answers with a line of JSON for every file and entry, then an
empty line. The files of a line are read in one child process; one that dies is named, and another
child goes on behind the file.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a child would wait for its parent's threads

import torch

from .entries import ENTRIES, RESULTS, prepare

CPU_SECONDS, SECONDS = 20, 60
"""After which an entry is stopped, as none should take: of the processor, and on the clock."""
MEMORY = 8 * 2**30
"""More address space than a file may take, so that the machine survives a test that fails."""
STARTED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
    "socket.connect",
    "socket.bind",
    "webbrowser.open",
)
_MODULES = ("torch._utils", "torch.storage", "torch.serialization", "torch._tensor", "collections")
_GOOD = Path("good.ckpt")

_events: list[str] = []


def peak_memory() -> int:
    """Bytes that this process has had at most since `forget_peak`; of its parent's none."""
    return int(_status("VmHWM")) * 1024


def _status(field: str) -> str:
    found = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return found[1]


def forget_peak() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def torch_now() -> str:
    """A digest of what a file could have changed: torch's functions, and what a good file holds."""
    found = hashlib.sha256(repr((torch.get_default_dtype(), torch.is_grad_enabled())).encode())
    for name in _MODULES:
        for key, value in sorted(vars(sys.modules[name]).items()):
            if isinstance(value, FunctionType):
                parts = value.__defaults__, value.__kwdefaults__, value.__code__, value.__dict__
                found.update(f"{key}{parts}".encode())
    try:
        for value in torch.load(_GOOD, weights_only=True).values():
            found.update(value.numpy().tobytes())
    except Exception as error:  # torch as a file has left it
        found.update(repr(error).encode())
    return found.hexdigest()


def files_here() -> set[str]:
    """What an entry could have written: in the current folder, or in that of temporary files."""
    folders = Path(), Path(tempfile.gettempdir())
    return {str(file) for folder in folders for file in folder.rglob("*")}


def try_entry(kind: str, entry: str, path: Path) -> dict[str, Any]:
    """Reads a file by an entry, and tells what came of it."""
    digest, files, _events[:] = torch_now(), files_here(), []
    forget_peak()
    signal.alarm(SECONDS)
    used, (_, hard) = int(time.process_time()), resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, hard))
    outcome: dict[str, Any] = {"code": 0, "trace": "", "raised": ""}
    with _captured() as streams:
        began = time.process_time()
        try:
            answer = ENTRIES[kind][entry](path)
            outcome["code"] = answer if isinstance(answer, int) else 0
        except ValueError as error:
            outcome |= {"code": 2, "raised": str(error)}
        except BaseException:
            outcome |= {"code": -1, "trace": traceback.format_exc(limit=-4)}
        outcome["seconds"] = time.process_time() - began
    signal.alarm(0)
    outcome["peak"] = peak_memory()
    outcome["out"], outcome["err"] = (stream.decode("utf-8", "replace") for stream in streams)
    written = files_here() - files
    for name in written & set(RESULTS):
        Path(name).unlink()
        if not outcome["code"]:
            written.remove(name)
    return {
        **outcome,
        "written": sorted(written),
        "started": _events[:],
        "polluted": torch_now() != digest,
    }


class _captured:
    """What the process writes, libraries in C as well, to its standard output and error."""

    def __enter__(self) -> list[bytes]:
        self._files = [os.memfd_create(name) for name in ("out", "err")]
        self._kept = [os.dup(number) for number in (1, 2)]
        self._streams: list[bytes] = []
        for number, file in enumerate(self._files, start=1):
            os.dup2(file, number)
        return self._streams

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, (file, kept) in enumerate(zip(self._files, self._kept, strict=True), start=1):
            os.dup2(kept, number)
            os.lseek(file, 0, os.SEEK_SET)
            self._streams.append(os.read(file, 10**6))
            os.close(file)
            os.close(kept)


Trials = list[tuple[Path, list[str]]]
"""Files, and the entries that try them; all where there are none."""


def try_files(kind: str, trials: Trials, answers: int) -> None:
    """Answers for each file and entry; before that a line that says which one it is."""
    with os.fdopen(answers, "w") as file:
        for path, entries in trials:
            for entry in entries or ENTRIES[kind]:
                print(json.dumps([path.name, entry]), file=file, flush=True)
                print(json.dumps(try_entry(kind, entry, path)), file=file, flush=True)


def in_children(kind: str, trials: Trials) -> Iterator[dict[str, Any]]:
    while trials:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            limit = int(_status("VmSize")) * 1024 + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            sys.addaudithook(lambda event, _: _events.append(event) if event in STARTED else None)
            status = 1
            try:
                try_files(kind, trials, write)
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        os.close(write)
        last = None
        with os.fdopen(read) as answers:
            for line in answers:
                if (value := json.loads(line)) and isinstance(value, list):
                    last = value
                else:
                    yield {"file": last[0], "entry": last[1], **value}
                    last = [last[0], None]
        _, status = os.waitpid(child, 0)
        if not status:
            return
        assert last is not None, f"a child ended with {status} before its first file"
        yield {"file": last[0], "entry": last[1] or "", "died": os.waitstatus_to_exitcode(status)}
        names = [path.name for path, _ in trials]
        trials = trials[names.index(last[0]) + 1 :]


def main() -> None:
    torch.set_num_threads(1)
    # What is imported with the first model or run is no fault of a file's.
    for name in (
        "transformers.models.clip.modeling_clip",
        "training.loop",
        "training.stages.diffusion",
    ):
        import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.mkdir("work")
        os.mkdir("temporary")
        tempfile.tempdir = str(Path("temporary").resolve())
        os.environ["TMPDIR"] = tempfile.tempdir
        os.chdir("work")
        prepare()
        torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}, _GOOD)
        gc.freeze()  # so that looking for garbage is quick
        for line in sys.stdin:
            kind, place, files = json.loads(line)
            trials = [(Path(place, name), entries) for name, entries in files]
            for answer in in_children(kind, trials):
                print(json.dumps(answer))
            print(flush=True)


if __name__ == "__main__":
    main()
