"""A ComfyUI that runs graphs, and pictures of any of their links."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.nodes.graph import to_prompt, with_pictures
from tests.nodes.host import Host, Prompt

ROOT = Path(__file__).resolve().parents[2]
PACK = "paint-by-example"
"""The name under which the page shows this pack."""

Link = list[Any]
"""Id of a node, and the number of one of its outputs."""


class GraphError(RuntimeError):
    """A graph that does not run; `args[0]` is a sentence."""


@contextmanager
def running_host(comfyui: Path, python: Path) -> Iterator[Host]:
    """ComfyUI with this checkout as a pack, and nothing else that the user has installed."""
    with (
        TemporaryDirectory() as folder,
        Host.start(comfyui, python, ROOT, Path(folder) / "base", name=PACK) as host,
    ):
        yield host


def load_prompt(host: Host, workflow: dict[str, Any]) -> Prompt:
    """A saved workflow as the server takes it, with a scene for pictures to choose."""
    return with_pictures(to_prompt(workflow, host.object_info()))


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow as the page saves it."""
    return json.loads(path.read_text(encoding="utf-8"))


def upstream(prompt: Prompt, node: str) -> list[str]:
    """A node and all that it depends on, each after what it depends on itself."""
    found: list[str] = []

    def visit(name: str) -> None:
        for value in prompt[name]["inputs"].values():
            if is_link(value) and value[0] not in found:
                visit(value[0])
        if name not in found:
            found.append(name)

    visit(node)
    return found


def is_link(value: object) -> bool:
    """Whether an input of a prompt comes from another node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


class Tapped:
    """A prompt that is run for the pictures on some of its links.

    Args:
        prompt: the nodes; what no tapped link needs is not run.
    """

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = dict(prompt)
        self.taps: list[str] = []

    def image(self, link: Link) -> str:
        """Tap a link that carries images.

        Returns:
            The name under which `run` gives them.
        """
        name = f"tap of {link[0]}.{link[1]}"
        if name not in self.taps:
            self.taps.append(name)
            self.prompt[name] = {"class_type": "PreviewImage", "inputs": {"images": link}}
        return name

    def mask(self, link: Link) -> str:
        """Tap a link that carries masks; they come as grey images."""
        name = f"mask of {link[0]}.{link[1]}"
        self.prompt[name] = {"class_type": "MaskToImage", "inputs": {"mask": link}}
        return self.image([name, 0])

    def run(self, host: Host) -> dict[str, list[np.ndarray]]:
        """The pictures of all tapped links by name, 8 bit.

        Raises:
            GraphError: a node failed.
            HostError: the host refuses the prompt.
        """
        needed = {name for tap in self.taps for name in upstream(self.prompt, tap)}
        run = host.run({name: node for name, node in self.prompt.items() if name in needed})
        if run.error is not None:
            raise GraphError(run.error_text)
        return {tap: host.images(run, tap) for tap in self.taps}


def new_node(host: Host, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node for a prompt: the given inputs, and the defaults of the other widgets."""
    defaults = {}
    for group in ("required", "optional"):
        for name, (choices, *options) in (
            host.object_info(kind)[kind]["input"].get(group, {}).items()
        ):
            if options and "default" in options[0]:
                defaults[name] = options[0]["default"]
            elif isinstance(choices, list):
                defaults[name] = choices[0]
    return {"class_type": kind, "inputs": defaults | inputs}
