"""What cannot be printed changes neither a result nor an exit code."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from PIL import Image

from pbe_model.checkpoints.save import save_model
from pbe_model.cli.main import main

from ..small import small_model

RNG = np.random.default_rng(0)
NAME = "übung-✓.png"
LATIN = os.fsdecode(b"f\xf8hn.png")  # a name in another encoding than the system's


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model("small.safetensors", small_model())
    for name, size in (("photo", (40, 50, 3)), ("exemplar", (20, 24, 3))):
        Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(f"{name}.png")
    hole = np.zeros((40, 50), np.uint8)
    hole[10:20, 15:30] = 255
    Image.fromarray(hole).save("mask.png")
    Path(f"{NAME}.jsonl").write_text(
        f'{{"image": "photo.png", "mask": "mask.png", "exemplar": "exemplar.png", "out": "{NAME}"}}'
        '\n{"image": "✗.png", "mask": "mask.png", "exemplar": "exemplar.png"}\n',
        encoding="utf-8",
    )
    return tmp_path


def encoded(encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding)


def closed() -> TextIO:
    stream = encoded("utf-8")
    stream.close()
    return stream


def nobody_reads() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def full_disk() -> TextIO:
    return open("/dev/full", "w", encoding="utf-8")


STREAMS: dict[str, Callable[[], TextIO | None]] = {
    "ascii": lambda: encoded("ascii"),
    "cp1252": lambda: encoded("cp1252"),
    "closed": closed,
    "none": lambda: None,
    "nobody reads": nobody_reads,
}
if os.path.exists("/dev/full"):
    STREAMS["full disk"] = full_disk

PICTURES = ["--image", "photo.png", "--mask", "mask.png", "--exemplar", "exemplar.png"]
MODEL = ["--checkpoint", "small.safetensors", "--steps", "1", "--device", "cpu"]
COMMANDS: dict[str, tuple[list[str], int, str | None]] = {
    "edit": (["edit", *PICTURES, *MODEL, "--out", NAME], 0, NAME),
    "edit latin": (["edit", *PICTURES, *MODEL, "--out", LATIN], 0, LATIN),
    "batch": (["batch", f"{NAME}.jsonl", *MODEL, "--out", "out"], 1, f"out/{NAME}"),
    "convert": (["convert", "small.safetensors", "ü✓.ckpt", "--to", "official"], 0, "ü✓.ckpt"),
    "inspect": (["inspect", "small.safetensors"], 0, None),
    "bad input": (["inspect", NAME + "x"], 2, None),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_work_counts(folder, monkeypatch, command, stream):
    argv, code, result = COMMANDS[command]
    if (command, stream) == ("inspect", "full disk"):
        code = 2  # what it prints is its result
    stdout, stderr = STREAMS[stream](), STREAMS[stream]()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        assert main(argv) == code
        assert sys.stdout is stdout and sys.stderr is stderr
    assert result is None or Path(result).is_file()
    for one in (stdout, stderr):
        if one is not None:
            one.close()  # which fails where something is left to be written


def test_what_an_encoding_lacks_is_escaped(folder, monkeypatch):
    stdout = encoded("cp1252")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(COMMANDS["edit"][0]) == 0
    assert stdout.buffer.getvalue().decode("cp1252").split() == ["übung-\\u2713.png"]


def test_text_that_is_lost_is_told_of(folder, monkeypatch, capsys):
    if "full disk" not in STREAMS:
        pytest.skip("no /dev/full here")
    with full_disk() as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["inspect", "--json", "small.safetensors"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pbe: could not print all of the output: No space left on device;")


@pytest.mark.skipif(os.name == "nt", reason="a shell that closes descriptors")
@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_descriptors_that_are_closed_are_not_those_of_the_result(folder, closed):
    command = f'exec "$0" -m pbe_model edit {" ".join([*PICTURES, *MODEL])} --out out.png {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    with Image.open("out.png") as picture:
        picture.load()
    assert Path("out.png").read_bytes().endswith(b"IEND\xaeB`\x82")
