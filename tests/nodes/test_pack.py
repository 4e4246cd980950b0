"""What can be said of the pack without ComfyUI: how it enters, what it imports, what it ships."""

import ast
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from pbe_model.checkpoints.download import REPOSITORY

ROOT = Path(__file__).resolve().parents[2]
NODE_FILES = sorted((ROOT / "nodes").rglob("*.py"))
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
LANGUAGES = ("en", "ko", "zh", "ja")


def _imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def test_the_checkout_imports_without_comfyui_under_any_name():
    code = (
        "import importlib.util, sys; "
        "spec = importlib.util.spec_from_file_location('/any/name_x_1', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); "
        "sys.modules[spec.name] = module; spec.loader.exec_module(module); "
        "assert callable(module.comfy_entrypoint) and module.WEB_DIRECTORY; "
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT / "__init__.py")], check=True)


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: path.stem)
def test_nodes_reach_the_model_relatively_and_never_the_training(path: Path):
    for level, module in _imports(path):
        top = module.split(".")[0]
        assert top != "training", f"{path.name} imports training"
        assert level or top not in ("pbe_model", "nodes", "utils"), f"{path.name} imports {module}"


def test_only_the_adapter_touches_comfyui_internals():
    # The host's interface for packs; comfy_execution builds a node's expansion.
    allowed = {"comfy_api", "comfy_execution", "folder_paths"}
    for path in NODE_FILES:
        host = {
            m for level, m in _imports(path) if not level and m.startswith(("comfy", "latent_"))
        }
        if path.name == "sampler.py":
            host -= {"comfy.samplers"}  # the lists of sampler and scheduler names
        if path.parent.name != "adapter":
            assert all(m.split(".")[0] in allowed for m in host), f"{path.name} imports {host}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_thumbnail(path: Path):
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.size == (480, 360)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_links_of_a_workflow_join_sockets_of_their_type(path: Path):
    """The page believes the file, so a link has to stand right in it and at both its ends."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    told = set()
    for link, source, slot, target, socket, kind in workflow["links"]:
        output, given = nodes[source]["outputs"][slot], nodes[target]["inputs"][socket]
        assert output["type"] == given["type"] == kind
        assert link in output["links"] and given["link"] == link
        told.add(link)
    outputs = [link for node in nodes.values() for o in node["outputs"] for link in o["links"]]
    inputs = [i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None]
    assert sorted(outputs) == sorted(inputs) == sorted(told)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_and_groups_of_a_workflow_do_not_overlap(path: Path):
    workflow = _read(path)
    for boxes in (map(_box, workflow["nodes"]), map(_bounding, workflow["groups"])):
        for a, b in combinations(boxes, 2):
            assert not _overlap(a, b), f"{a} over {b}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_node_of_a_workflow_but_its_read_me_lies_inside_one_group(path: Path):
    workflow = _read(path)
    groups = [_bounding(group) for group in workflow["groups"]]
    titles = [group["title"] for group in workflow["groups"]]
    assert titles[0] == "Inputs" and titles[-1] == "Result" and len(set(titles)) == len(titles)
    for node in workflow["nodes"]:
        box = _box(node)
        touched = [group for group in groups if _overlap(box, group)]
        if node["type"] == "MarkdownNote":
            assert touched == []
            continue
        (group,) = touched
        assert group[0] <= box[0] and group[1] <= box[1], f"{node['type']} sticks out"
        assert box[2] <= group[2] and box[3] <= group[3], f"{node['type']} sticks out"


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of what stands on the page."""
TITLE_BAR = 30
ADDED_BY_A_RUN = {"PBEInpaintSampler": 220, "KSampler": 220}
"""Height of what a node shows below its widgets when it has run."""


def _box(node: dict) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + width, y + height + ADDED_BY_A_RUN.get(node["type"], 0)


def _bounding(group: dict) -> Box:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _types_before(workflow: dict, node: int) -> set[str]:
    """Types of all nodes that a node depends on."""
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    found, left = set(), [node]
    while left:
        target = left.pop()
        sources = {link[1] for link in workflow["links"] if link[3] == target} - found
        found |= sources
        left += sources
    return {types[source] for source in found}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_shows_the_mask_that_it_paints(path: Path):
    """The preview takes it from where the painting node, or what crops for that, takes it."""
    workflow = _read(path)
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    masks = [link for link in workflow["links"] if link[5] == "MASK"]
    shown = {tuple(link[1:3]) for link in masks if types[link[3]] == "MaskPreview"}
    painters = ("PBEInpaintSampler", "InpaintModelConditioning")
    painted = {tuple(link[1:3]) for link in masks if types[link[3]] in painters}
    assert painted and painted <= shown


def test_the_native_workflow_ends_in_the_stitched_photo():
    workflow = _read(ROOT / "example_workflows/native_ksampler.json")
    (saved,) = (node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage")
    before = _types_before(workflow, saved)
    assert before >= {"PBECrop", "InpaintModelConditioning", "KSampler", "VAEDecode", "PBEStitch"}
    assert not before & {"PBEInpaintSampler", "ImageCompositeMasked"}


def test_the_starter_says_first_where_the_weights_come_from_and_where_they_go():
    workflow = _read(ROOT / "example_workflows/paint_by_example.json")
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    first = note.split("\n\n")[1]
    assert f"](https://huggingface.co/{REPOSITORY}/resolve/main/model.ckpt)" in first
    assert "**ComfyUI/models/paint_by_example**" in first


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_explains_itself_and_names_the_models_it_needs(path: Path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    assert "`" not in note, "Nodes 2.0 draws code in dark blue on a note's brown"
    for node in nodes:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].endswith(f"/{model['name']}")
            assert f"[{model['name']}]({model['url']})" in note
            assert f"**ComfyUI/models/{model['directory']}**" in note


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_names_the_same_things(language: str):
    english = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    other = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    assert _shape(other) == _shape(english)


def _shape(tree: object) -> object:
    """A tree of texts without the texts, which must not be empty."""
    if isinstance(tree, dict):
        return {key: _shape(value) for key, value in tree.items()}
    assert isinstance(tree, str) and tree.strip()
    return None
