"""What a picture was made from, as short fingerprints that are stored in it.

A picture whose graph, scenes or model have changed since then is told by comparing them with those
of today. Where the nodes of a graph stand, and what its notes say, does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbe_model.checkpoints.load import BUNDLED
from pbe_model.scenes import SCENES
from tests.nodes.graph import PAGE_ONLY_NODES, STAND_IN, is_to_choose

SCENE_NODE = "PBEExampleInputs"
_SEEN = ("id", "type", "mode", "widgets_values")
"""What decides the pictures that a node gives, beside its links."""


def marks_of_graph(workflow: dict[str, Any], scenes: Path = SCENES) -> dict[str, str]:
    """Fingerprints of a saved workflow, of the scenes that it loads, and of the bundled model."""
    inputs = {name: scene_mark(name, scenes) for name in scene_names(workflow)}
    return {"graph": graph_mark(workflow), "inputs": _mark(inputs), "model": model_mark()}


def graph_mark(workflow: dict[str, Any]) -> str:
    """Fingerprint of what a graph computes."""
    nodes = []
    for part in _parts(workflow):
        sources = dict(map(_source, part["links"]))
        for node in part["nodes"]:
            if node["type"] not in PAGE_ONLY_NODES:
                sockets = {i["name"]: sources.get(i.get("link")) for i in node.get("inputs", [])}
                nodes.append([{key: node.get(key) for key in _SEEN}, sockets])
    return _mark(nodes)


def scene_names(workflow: dict[str, Any]) -> list[str]:
    """The bundled scenes that a graph loads, in the order of its nodes.

    The last is the one that stands in for pictures that the user is to choose.
    """
    nodes = [node for part in _parts(workflow) for node in part["nodes"]]
    names = [node["widgets_values"][0] for node in nodes if node["type"] == SCENE_NODE]
    return names + [STAND_IN] * any(map(is_to_choose, nodes))


def scene_mark(name: str, scenes: Path = SCENES) -> str:
    """Fingerprint of a scene's files.

    Args:
        name: the scene's name, which is that of its folder.
        scenes: the folder of all scenes.
    """
    files = sorted((scenes / name).iterdir())
    return _mark([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])


def model_mark() -> str:
    """Fingerprint of the bundled model's file."""
    return hashlib.sha256(BUNDLED.read_bytes()).hexdigest()[:12]


def _parts(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph and its subgraphs."""
    yield workflow
    yield from workflow.get("definitions", {}).get("subgraphs", [])


def _source(link: Any) -> tuple[int, list[int]]:
    """A link's number, and the node and the output that it comes from."""
    if isinstance(link, dict):  # of a subgraph
        return link["id"], [link["origin_id"], link["origin_slot"]]
    return link[0], link[1:3]


def _mark(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
