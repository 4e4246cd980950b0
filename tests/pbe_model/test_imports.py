"""Who may import whom, what may be depended on, and that importing does nothing else."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]

# What ComfyUI itself requires; a pack that stays within it can cause no conflict.
HOST_REQUIRES = {
    *("torch", "torchvision", "numpy", "einops", "transformers", "safetensors", "pillow", "scipy"),
    *("tqdm", "pydantic"),
}
# Import names of those, the accelerator that is used where it is installed, and the client of the
# hub for `pbe download`.
PACKAGE_IMPORTS = (HOST_REQUIRES - {"pillow"}) | {"PIL", "xformers", "huggingface_hub"}
FOREIGN = (
    "comfy",
    "comfy_api",
    "nodes",
    "training",
    "folder_paths",
    "xformers",
    "cv2",
    "accelerate",
)


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(file, absolute module name) of each import in a folder, relative imports left out."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files, folder
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            yield from ((str(path.relative_to(REPOSITORY)), name) for name in names)


def top(name: str) -> str:
    return name.partition(".")[0]


def test_pbe_model_imports_itself_relatively_and_little_else():
    allowed = PACKAGE_IMPORTS | set(sys.stdlib_module_names)
    found = list(imports("pbe_model"))
    assert ("pbe_model/networks/unet.py", "torch") in found
    assert [pair for pair in found if top(pair[1]) not in allowed] == []


FLOORS = (
    {"untrusted", "memory", "file_kinds"},
    {"atomic"},
    {"config"},
    {"networks", "sampling"},
    {"model"},
    {"editing", "checkpoints"},
    {"picture_headers", "colour_profiles"},
    {"side_information"},
    {"pictures"},
    {"image_io"},
    {"scenes"},
    {"cli"},
)
"""Rooms of `pbe_model` from the ground up: each imports those below it and itself."""


def rooms_imported() -> Iterator[tuple[Path, str, str]]:
    """File, its room, and a room of `pbe_model` that it imports."""
    package = REPOSITORY / "pbe_model"
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level <= len(place), f"{path} imports from outside of the package"
                start = [*place[: len(place) - node.level], *(node.module or "").split(".")]
                names = [start[0]] if start[0] else [alias.name for alias in node.names]
                for name in names:
                    yield path.relative_to(package), place[0], name


def test_rooms_import_what_is_below_them():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    # The package's own names, and the one way back: a model is loaded by its own class method.
    upward = {"__init__": set(floor), "__main__": {"cli"}, "model": {"checkpoints"}}
    seen = set()
    for path, room, imported in rooms_imported():
        seen.add(room)
        if imported in upward.get(room, ()):
            continue
        below = floor[imported] < floor[room]
        assert below or imported == room, f"{path} imports {imported}, which is not below it"
    assert seen >= set(floor) - {"untrusted", "memory", "file_kinds", "colour_profiles"}


def test_nodes_leave_the_command_line_alone():
    for path in (REPOSITORY / "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = getattr(node, "module", None) or ""
            assert not module.startswith("pbe_model.cli"), path


def test_nodes_import_neither_training_nor_anything_under_its_own_name():
    """The host gives the pack a name of its own, and owns the names `nodes` and `utils`."""
    found = list(imports("nodes"))
    assert any(top(name) == "comfy_api" for _, name in found)
    forbidden = ("training", "pbe_model", "nodes", "utils", "diffusers", "cv2", "accelerate")
    assert [pair for pair in found if top(pair[1]) in forbidden] == []


def test_only_the_adapter_touches_comfy_internals():
    """The other nodes take no more of the host than its public API and its lists of names."""
    found = [pair for pair in imports("nodes") if top(pair[1]) == "comfy"]
    assert any(path.startswith("nodes/adapter/") for path, _ in found)
    outside = {name for path, name in found if not path.startswith("nodes/adapter/")}
    assert outside <= {"comfy.samplers"}


@pytest.mark.parametrize("folder", ["nodes", "pbe_model", "training"])
def test_nobody_touches_the_import_path(folder):
    for path in (REPOSITORY / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), path


def test_training_uses_the_package_and_not_the_nodes():
    found = list(imports("training"))
    assert any(top(name) == "pbe_model" for _, name in found)
    assert [pair for pair in found if top(pair[1]) in ("nodes", "comfy", "folder_paths")] == []


def test_dependencies_stay_within_the_hosts():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line.strip() and not line.startswith("#")]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement.lower())[0] for requirement in requirements}

    assert names(project["dependencies"]) <= HOST_REQUIRES
    # The pack's own list names no version of torch: it must never replace the host's.
    assert names(required) == names(project["dependencies"])
    assert "torch" in required
    third_party = {top(name) for _, name in imports("pbe_model")} - set(sys.stdlib_module_names)
    needed = {"pillow" if name == "PIL" else name for name in third_party}
    assert needed - {"xformers", "huggingface_hub"} <= names(required)  # which are extras


def test_pbe_model_works_without_its_surroundings_and_importing_does_nothing_else(tmp_path):
    """In a fresh interpreter and an empty home, with every neighbour made impossible to import."""
    code = f"""
import pkgutil, sys
for name in {FOREIGN!r}:
    sys.modules[name] = None
sys.path.insert(0, {str(REPOSITORY)!r})
before = list(sys.path)
import pbe_model
for module in pkgutil.walk_packages(pbe_model.__path__, "pbe_model."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
assert sys.path == before
"""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []
