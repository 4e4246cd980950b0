"""The nodes are a layer over `pbe_model`: what it does, they do not do once more."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODES = sorted((ROOT / "nodes").rglob("*.py"))
PACKAGE = sorted((ROOT / "pbe_model").rglob("*.py"))

MATHS = {
    *("interpolate", "pad", "conv2d", "linear", "softmax", "layer_norm", "group_norm", "einsum"),
    *("scaled_dot_product_attention", "memory_efficient_attention", "rearrange", "matmul", "gelu"),
    *("max_pool2d", "avg_pool2d", "grid_sample", "affine_grid", "cumprod", "sqrt", "load_file"),
}
"""Calls of which each has its place in the package: resizing, masks, attention, schedule, files."""

LIBRARIES = {"numpy", "scipy", "PIL", "einops", "safetensors", "xformers", "transformers", "pickle"}

LEAST = 120
"""Characters of a function's tree below which two are equal by chance."""


class Renamed(ast.NodeTransformer):
    """Names in the order in which they appear, so that a copy with other names is one."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def _name(self, name: str) -> str:
        return self.names.setdefault(name, f"n{len(self.names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg, node.annotation = self._name(node.arg), None
        return node


def bodies(source: str) -> Iterator[tuple[str, str]]:
    """Every function's name, and its arguments and statements without names and docstring."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        body = copy.deepcopy(node.body)
        if ast.get_docstring(node) is not None:
            body = body[1:]
        renamed = Renamed()
        text = "".join(ast.dump(renamed.visit(statement)) for statement in body)
        if len(text) >= LEAST:
            yield node.name, text


def copies(sources: list[str], originals: list[str]) -> list[str]:
    """Functions of `sources` that do, statement by statement, what one of `originals` does."""
    known = {text for source in originals for _, text in bodies(source)}
    return [name for source in sources for name, text in bodies(source) if text in known]


def read(paths: list[Path]) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in paths]


def test_no_function_of_the_package_is_there_twice():
    assert copies(read(NODES), read(PACKAGE)) == []


def test_a_copy_under_other_names_is_found():
    original = (ROOT / "pbe_model/networks/masked_inputs.py").read_text(encoding="utf-8")
    renamed = original.replace("hole_mask", "mask").replace("def latent_keep_mask", "def keep")
    assert copies([renamed], read(PACKAGE))[-1:] == ["keep"]
    assert copies(["def f(x):\n    return x"], ["def f(x):\n    return x"]) == []


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.stem)
def test_the_nodes_call_no_maths(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not called & MATHS, f"{path.name} calls {called & MATHS}; that is the package's"
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
    }
    assert not imported & LIBRARIES, f"{path.name} imports {imported & LIBRARIES}"


RULES = {
    "nodes/adapter/denoiser.py": ("latent_keep_mask", "photo_channels"),
    "nodes/adapter/attention.py": ("one_token_attention", "select_attention"),
    "nodes/adapter/first_stage.py": ("masked_image",),
    "nodes/exemplar.py": ("preprocess", "normalise", "weighted_mean"),
    "nodes/saved.py": ("load_exemplar", "save_exemplar"),
    "nodes/save_model.py": ("save_parts",),
}
"""What is easy to get silently wrong, and who takes it from the package."""


@pytest.mark.parametrize("path", RULES)
def test_silent_facts_come_from_the_package(path: str):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    taken = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "pbe_model" in (node.module or "")
        for alias in node.names
    }
    called = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert set(RULES[path]) <= taken & called
