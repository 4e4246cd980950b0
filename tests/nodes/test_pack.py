"""What can be said of the pack without ComfyUI: how it enters, what it imports, what it ships."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE_FILES = sorted((ROOT / "nodes").rglob("*.py"))
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
    allowed = {"comfy_api", "folder_paths"}
    for path in NODE_FILES:
        host = {
            m for level, m in _imports(path) if not level and m.startswith(("comfy", "latent_"))
        }
        if path.name == "sampler.py":
            host -= {"comfy.samplers"}  # the lists of sampler and scheduler names
        if path.parent.name != "adapter":
            assert all(m.split(".")[0] in allowed for m in host), f"{path.name} imports {host}"


def test_every_workflow_has_a_thumbnail():
    workflows = sorted((ROOT / "example_workflows").glob("*.json"))
    assert workflows
    for path in workflows:
        assert path.with_suffix(".jpg").is_file(), f"{path.name} has no thumbnail"


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
