"""What can be said of the pack without ComfyUI: how it enters, what it imports, what it ships."""

import ast
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

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
def test_nodes_of_a_workflow_do_not_overlap(path: Path):
    """With a title bar of 30 pixels above each, and a preview of 220 below a sampler that runs."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    boxes = []
    for node in nodes:
        (x, y), (width, height) = node["pos"], node["size"]
        preview = 220 if node["type"] in ("PBEInpaintSampler", "KSampler") else 0
        boxes.append((x, y - 30, x + width, y + height + preview))
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{a} over {b}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_explains_itself_and_names_the_models_it_needs(path: Path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    for node in nodes:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].endswith(f"/{model['name']}")
            assert f"[{model['name']}]({model['url']})" in note
            assert f"`ComfyUI/models/{model['directory']}`" in note


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
