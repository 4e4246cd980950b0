"""Pictures of ComfyUI's page: the starter after a run, and nodes for the help pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.nodes.browser import Browser
from tests.nodes.host import Host

from .hosting import ROOT, read_workflow
from .jpeg import write_jpeg
from .marks import marks_of_graph
from .report import Report

STARTER = ROOT / "example_workflows/paint_by_example.json"
SCREENSHOT = ROOT / "docs/images/comfyui.jpg"
_SCRIPT = Path(__file__).with_name("page.mjs")
_WIDTH = 1400


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture of a graph in the page; see `page.mjs` for what its fields mean."""

    path: Path
    content: dict[str, Any]
    marks: dict[str, str]


def starter() -> Shot:
    """The starter workflow after a run."""
    workflow = read_workflow(STARTER)
    content = {"graph": workflow, "run": True, "width": _WIDTH}
    return Shot(path=SCREENSHOT, content=content, marks=marks_of_graph(workflow))


def of_nodes(
    path: Path,
    nodes: list[tuple[str, tuple[int, int]]],
    links: list[tuple[int, int, int, int]] | None = None,
    *,
    width: int,
) -> Shot:
    """Nodes as they look when they are new.

    Args:
        path: the picture.
        nodes: type and place of each.
        links: from a node's output to another's input, by number.
        width: of the picture.
    """
    placed = [{"type": kind, "pos": place} for kind, place in nodes]
    content = {"nodes": placed, "links": links or [], "width": width}
    return Shot(path=path, content=content, marks={})


def make(host: Host, browser: Browser, shots: list[Shot], report: Report) -> None:
    """Take all shots in one browser."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{number}.png" for number in range(len(shots))]
        listed = [
            {**shot.content, "out": str(file)} for shot, file in zip(shots, files, strict=True)
        ]
        (folder / "shots.json").write_text(json.dumps(listed), encoding="utf-8")
        arguments = (f"http://{host.address}/", browser.chromium, str(folder / "shots.json"))
        try:
            browser.drive(_SCRIPT, *arguments, timeout=600)
        except RuntimeError as error:
            report.failed(f"the browser gave up: {error}")
            return
        for shot, file in zip(shots, files, strict=True):
            with Image.open(file) as picture:
                report.made(shot.path, write_jpeg(shot.path, picture.convert("RGB"), shot.marks))
