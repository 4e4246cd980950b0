"""The sheet that `pbe demo` writes, as the README and the page on the bundled model show it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from pbe_model.scenes import load_scenes

from .hosting import ROOT
from .jpeg import write_jpeg
from .marks import model_mark, scene_mark
from .report import Report

SHEET = ROOT / "docs/images/demo.jpg"


def make(report: Report) -> None:
    """Run `pbe demo` and keep its sheet."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pbe_model", "demo", "--out", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            report.failed(f"pbe demo failed: {done.stderr.strip()}")
            return
        with Image.open(Path(folder) / "grid.png") as grid:
            picture = grid.convert("RGB")
    scenes = " ".join(scene_mark(scene.name) for scene in load_scenes())
    marks = {"scenes": scenes, "model": model_mark()}
    report.made(SHEET, write_jpeg(SHEET, picture, marks))
