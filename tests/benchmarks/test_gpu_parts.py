"""Every part of `python -m benchmarks.gpu`, on a CPU with tiny networks, as on a card."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.pack_host import pack
from benchmarks.gpu.report import Row, read_rows

from ..nodes.host import find_host
from ..training.runs import write_photos

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
TINY = "--model tiny --data.source index --steps 2 --batch-size 2 --precision no --data.workers 0"
MEASURED = {
    "environment": ["torch", "matrix product of 256, bf16"],
    "correct": [
        "edit in float32 against the CPU's in float32",
        "denoiser in fp16 against float32",
        "first stage decodes in fp16, finite, against float32",
        "attention, torch's choice, bfloat16",
        "stopped half-way and resumed, fp16: numbers that differ",
        "LoRA, 2 updates in bf16: losses that are not finite",
        "denoiser compiled as a whole against eager, fp16",
    ],
    "host": [
        "the bundled model's workflow again",
        "weights fp8_e4m3fn, against the package on the CPU",
        "cancelling takes",
        "memory of the process, run 2 to 4",
    ],
    "speed": [
        "guided step, 16 px, fp16: ours, SDPA",
        "guided step, 16 px, bf16: diffusers",
        "pbe batch, model bundled",
        "compiling the denoiser",
    ],
    "training": ["training step, bf16, micro-batch 2, checkpointed"],
    "bundled": ["step", "loss", "median images a second"],
}
"""Rows that each part must have, among others."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all parts."""
    folder = tmp_path_factory.mktemp("gpu")
    photos = write_photos(folder / "photos", count=4)
    with tarfile.open(folder / "data.tar", "w") as archive:
        archive.add(photos, ".")
    words = ["--device", "cpu", "--small", "--minutes", "30", "--out", str(folder / "out")]
    words += ["--train", "bundled-first-stage", "--data", str(folder / "data.tar")]
    words += ["--more", f"{TINY} --log.trackers"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if found := find_host():
        comfyui, python = found
        pack(comfyui, None, folder / "host.tar.gz")
        words += ["--host", str(folder / "host.tar.gz")]
        environment["COMFYUI_PYTHON"] = str(python)
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return folder / "out"


@pytest.mark.parametrize("part", PARTS)
def test_part_runs_to_its_end(out: Path, part: str) -> None:
    rows = [row for row in read_rows(out) if row.part == part]
    if part == "host" and not rows:
        pytest.skip("no ComfyUI found; see tests/nodes/conftest.py")
    bad = [row for row in rows if row.verdict in ("FAILED", "error")]
    assert not bad, "\n".join(f"{row.name}: {row.value} {row.detail}" for row in bad)
    found = {row.name for row in rows if row.verdict in ("measured", "passed")}
    assert {*MEASURED[part], "the part"} <= found


def test_what_was_trained_comes_home(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors.0", "raw.safetensors.0", "samples.png"} <= names
    assert {"results.json", "table.md", "log.txt"} <= names and len(names) <= 8


def test_a_packed_comfyui_is_small(out: Path) -> None:
    packed = out.parent / "host.tar.gz"
    if not packed.exists():
        pytest.skip("no ComfyUI found; see tests/nodes/conftest.py")
    assert packed.stat().st_size < 15e6
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert "comfyui/main.py" in names
    assert not any(name.startswith(("comfyui/models", "comfyui/.git")) for name in names)


def test_rows_are_in_the_order_of_the_parts(out: Path) -> None:
    rows: list[Row] = read_rows(out)
    there = list(dict.fromkeys(row.part for row in rows))
    assert there == [part for part in PARTS if part in there]
