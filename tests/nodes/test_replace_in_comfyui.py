"""Old graphs of other packs, blueprints and the search, in a real ComfyUI."""

import json
from pathlib import Path

import numpy as np
import pytest

from .graph import to_prompt
from .host import Host, HostError, Prompt, ran

pytestmark = [pytest.mark.host, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SEARCHES = {"paint by example", "reference", "replace object", "insert object", "exemplar"}
LINKS = {"image": ["1", 0], "mask": ["1", 1], "example": ["1", 2]}
ADVANCED = {
    "cfg": 3.5,
    "sampler_name": "pndm",
    "negative": "blurry",
    "resize": True,
    "width": 512,
    "height": 512,
    "resize_mode": "bicubic",
}


def with_node(kind: str, inputs: dict) -> Prompt:
    """A scene, the node in question, and its picture."""
    return {
        "1": {"class_type": "PBEExampleInputs", "inputs": {"scene": "dune"}},
        # The host copies the titles of nodes that it replaces.
        "2": {"class_type": kind, "inputs": inputs, "_meta": {"title": "old"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def in_full(seed: int, steps: int, similarity: float) -> Prompt:
    """The same edit from the nodes that a user would wire up."""
    return {
        **with_node(
            "PBEInpaintSampler",
            {
                "model": ["4", 0],
                "positive": ["5", 0],
                "negative": ["5", 1],
                "vae": ["4", 2],
                "image": ["1", 0],
                "mask": ["1", 1],
                "seed": seed,
                "steps": steps,
                "similarity": similarity,
                "sampler_name": "auto",
                "scheduler": "karras",
                "denoise": 1.0,
                "region": "auto",
                "context": 1.8,
                "resolution": 0,
                "blend": -1,
            },
        ),
        "4": {
            "class_type": "PBELoader",
            "inputs": {
                "checkpoint": "bundled demo",
                "weight_dtype": "default",
                "attention": "auto",
            },
        },
        "5": {
            "class_type": "PBEExemplarEncoder",
            "inputs": {
                "encoder": ["4", 1],
                "exemplar": ["1", 2],
                "fit": "squash",
                "merge": "one each",
            },
        },
    }


def picture(host: Host, prompt: Prompt) -> np.ndarray:
    (image,) = host.images(ran(host, prompt), "3")
    return image


@pytest.mark.parametrize(
    ("old", "inputs", "new"),
    [
        ("PaintbyExampleSimple", {**LINKS, "seed": 7, "steps": 3}, (7, 3, -1.0)),
        ("PaintbyExampleAdvanced", {**LINKS, "seed": 8, "steps": 4, **ADVANCED}, (8, 4, 3.5)),
        (
            "PaintbyExampleSampler",
            {**LINKS, "pipe": ["6", 0], "height": 512, "width": 512},
            (0, 0, -1.0),
        ),
    ],
)
def test_a_prompt_with_an_old_node_gives_what_our_nodes_give(host: Host, old, inputs, new):
    prompt = with_node(old, inputs)
    if "pipe" in inputs:
        loader = {"checkpoint": "Paint-by-Example"}
        meta = {"title": "old"}
        prompt["6"] = {"class_type": "PaintbyExamplePipeLoader", "inputs": loader, "_meta": meta}
    np.testing.assert_array_equal(picture(host, prompt), picture(host, in_full(*new)))


def test_a_generated_example_is_what_ksampler_makes(host: Host):
    """Our own model stands in for one that makes pictures of a prompt: any MODEL will do."""
    full = in_full(3, 2, 4.0)
    conditioned = {
        "class_type": "InpaintModelConditioning",
        "inputs": {
            "positive": ["8", 0],
            "negative": ["8", 1],
            "vae": ["4", 2],
            "pixels": ["12", 0],
            "mask": ["1", 1],
            "noise_mask": False,
        },
    }
    small = {"image": ["1", 0], "upscale_method": "area", "width": 64, "height": 64}
    small |= {"crop": "disabled"}
    base = {"1": full["1"], "4": full["4"], "7": conditioned, "8": full["5"]}
    base["12"] = {"class_type": "ImageScale", "inputs": small}
    made = {"model": ["4", 0], "positive": ["7", 0], "negative": ["7", 1]}
    made |= {"latent_image": ["7", 2], "seed": 3, "steps": 2, "cfg": 4.0}
    made |= {"sampler_name": "euler", "scheduler": "normal"}
    photo = {"image": ["1", 0], "mask": ["1", 1]}
    old = with_node("PaintbyExampleGen", {**photo, **made, "vae": ["4", 2]})
    old["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}}
    done = host.run({**base, **old})
    assert done.error is None, done.error_text
    full |= base
    full["10"] = {"class_type": "KSampler", "inputs": {**made, "denoise": 1.0}}
    full["11"] = {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["4", 2]}}
    full["5"] = {"class_type": "PBEExemplarEncoder", "inputs": dict(full["5"]["inputs"])}
    full["5"]["inputs"]["exemplar"] = ["11", 0]
    full["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["11", 0]}}
    expected = host.run(full)
    assert expected.error is None, expected.error_text
    for node in ("3", "9"):
        np.testing.assert_array_equal(host.images(done, node), host.images(expected, node))


def test_another_seed_does_not_load_the_model_again(host: Host):
    inputs = {"image": ["1", 0], "mask": ["1", 1], "exemplar": ["1", 2], "steps": 2}
    inputs |= {"similarity": 4.25, "checkpoint": "bundled demo"}
    first = host.run(with_node("PBEPaint", {**inputs, "seed": 1}))
    second = host.run(with_node("PBEPaint", {**inputs, "seed": 2}))
    # The nodes inside go by names such as 2.0.0.1, in their order: loader, encoder, sampler.
    assert second.executed == ["2", "2.0.0.3", "3"]
    assert not np.array_equal(host.images(first, "3")[0], host.images(second, "3")[0])


def test_every_node_is_found_by_every_search(host: Host):
    ours = [node for node in host.object_info().values() if node["category"] == "paint by example"]
    assert len(ours) >= 11
    for node in ours:
        assert set(node["search_aliases"]) >= SEARCHES, node["name"]
    for path in BLUEPRINTS:
        assert set(json.loads(path.read_text())["extra"]["BlueprintSearchAliases"]) == SEARCHES


def test_blueprints_are_served(host: Host):
    served = json.loads(host.get("/global_subgraphs"))
    ours = {it["name"]: key for key, it in served.items() if it["source"] == "custom_node"}
    assert (
        sorted(ours) == [path.stem for path in BLUEPRINTS] == ["Paint by Example", "Replace Object"]
    )
    for path in BLUEPRINTS:
        entry = json.loads(host.get(f"/global_subgraphs/{ours[path.stem]}"))
        assert entry["data"] == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_links_of_a_blueprint_join_sockets_of_their_type(path: Path):
    blueprint = json.loads(path.read_text(encoding="utf-8"))
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    (node,) = blueprint["nodes"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == path.stem
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in node[side]] == [
            (s["name"], s["type"]) for s in subgraph[side]
        ]
    nodes = {it["id"]: it for it in subgraph["nodes"]}
    for link in subgraph["links"]:
        source, slot, target, socket = (
            link[key] for key in ("origin_id", "origin_slot", "target_id", "target_slot")
        )
        output = subgraph["inputs"][slot] if source == -10 else nodes[source]["outputs"][slot]
        given = subgraph["outputs"][socket] if target == -20 else nodes[target]["inputs"][socket]
        assert output["type"] == given["type"] == link["type"]
        assert link["id"] in output["linkIds" if source == -10 else "links"]
        assert link["id"] in given["linkIds"] if target == -20 else given["link"] == link["id"]


def unpacked(path: Path, sources: dict[str, list], host: Host) -> tuple[Prompt, list]:
    """The nodes in a blueprint as a prompt; `sources` says where its sockets come from.

    Returns:
        The prompt, and where the result comes out.
    """
    (subgraph,) = json.loads(path.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    inner = [link for link in subgraph["links"] if link["origin_id"] != -10]
    order = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [[link[key] for key in order] for link in inner]
    for given in subgraph["inputs"]:
        for node in subgraph["nodes"]:
            for socket in node["inputs"]:
                if socket["link"] in given["linkIds"]:
                    if given["name"] not in sources:  # a widget, which keeps its value
                        assert "widget" in socket
                        socket["link"] = None
                    else:
                        links.append([socket["link"], *sources[given["name"]]])
    prompt = to_prompt({"nodes": subgraph["nodes"], "links": links}, host.object_info())
    (out,) = (link for link in inner if link["target_id"] == -20 and link["target_slot"] == 0)
    return prompt, [str(out["origin_id"]), out["origin_slot"]]


def test_the_blueprint_paints_what_the_nodes_paint(host: Host):
    sources = {"photo": ["scene", 0], "mask": ["scene", 1], "exemplar": ["scene", 2]}
    prompt, result = unpacked(BLUEPRINTS[0], sources, host)
    prompt = {f"b{node}": it for node, it in prompt.items()}
    for it in prompt.values():
        for name, value in it["inputs"].items():
            if isinstance(value, list):
                it["inputs"][name] = ["1" if value[0] == "scene" else f"b{value[0]}", value[1]]
    prompt["1"] = {"class_type": "PBEExampleInputs", "inputs": {"scene": "dune"}}
    prompt["3"] = {"class_type": "PreviewImage", "inputs": {"images": [f"b{result[0]}", result[1]]}}
    np.testing.assert_array_equal(picture(host, prompt), picture(host, in_full(0, 0, -1.0)))


def test_replace_object_lacks_the_segmenters_file_and_nothing_else(host: Host):
    sources = {"photo": ["scene", 0], "exemplar": ["scene", 2]}
    prompt, result = unpacked(BLUEPRINTS[1], sources, host)
    prompt["scene"] = {"class_type": "PBEExampleInputs", "inputs": {"scene": "table"}}
    prompt["out"] = {"class_type": "PreviewImage", "inputs": {"images": result}}
    with pytest.raises(HostError) as refused:
        host.run(prompt)
    complaints = json.loads(str(refused.value))["node_errors"]
    assert {
        error["extra_info"]["input_name"] for it in complaints.values() for error in it["errors"]
    } == {"ckpt_name"}
