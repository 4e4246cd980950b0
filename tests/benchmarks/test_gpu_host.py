"""Packing a ComfyUI, and one that does not start."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import host
from benchmarks.gpu.options import Options
from benchmarks.gpu.pack_host import pack, unpack
from benchmarks.gpu.report import Report, read_rows


def test_only_what_the_server_needs_is_packed(tmp_path: Path) -> None:
    comfyui, wheels = tmp_path / "ComfyUI", tmp_path / "wheels"
    kept = ["main.py", "comfy/samplers.py", "comfy/vocab.json", "requirements.txt"]
    left = ["models/large.py", "custom_nodes/mine.py", ".git/hook.py", "docs/page.md", "notes.md",
            "comfy/__pycache__/samplers.pyc"]  # fmt: skip
    for name in (*kept, *left):
        (comfyui / name).parent.mkdir(parents=True, exist_ok=True)
        (comfyui / name).write_text(name, encoding="utf-8")
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "comfy_kitchen-1-py3-none-any.whl", "w") as wheel:
        for name in ("comfy_kitchen/a.py", "comfy_kitchen/backends/cuda/_C.abi3.so"):
            wheel.writestr(name, name)
    pack(comfyui, wheels, tmp_path / "host.tar.gz")
    unpack(tmp_path / "host.tar.gz", tmp_path / "there")
    files = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    names = {str(path.relative_to(tmp_path / "there")) for path in files}
    packages = {"site/av.py", "site/comfy_kitchen/a.py"}
    assert names == {f"comfyui/{name}" for name in kept} | packages


def test_a_server_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    (tmp_path / "main.py").write_text("raise SystemExit('no such thing')", encoding="utf-8")
    options = Options(out=tmp_path, device="cpu", small=True, host=tmp_path)
    monkeypatch.setitem(host._references, options, {})  # no picture is compared
    host.run(Report(folder=tmp_path, part="host"), options)
    failed, skipped = read_rows(tmp_path)
    assert failed.verdict == "error"
    assert "ComfyUI ended with code 1" in failed.detail
    assert failed.detail.rstrip().endswith("no such thing")
    assert skipped.verdict == "skipped"
