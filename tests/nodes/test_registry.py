"""The pack as the Comfy Registry takes it: metadata, what the archive holds, and that it works."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

from .host import Host

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = ("Repository", "PublisherId", "DisplayName", "Icon", "version", "description")


@pytest.fixture(scope="module")
def registry() -> ModuleType:
    """The script that the publish workflow runs."""
    pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    spec = importlib.util.spec_from_file_location("registry", ROOT / ".github/registry.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder with the icon and a pyproject.toml in which a publisher has put a name."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace("OWNER", "someone"), encoding="utf-8")
    shutil.copy(ROOT / "icon.svg", tmp_path)
    return tmp_path


def test_the_check_fails_while_no_owner_is_named(registry: ModuleType, filled: Path, capsys):
    (filled / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    with pytest.raises(ValueError, match=r"Repository in pyproject\.toml still says .*OWNER"):
        registry.check_metadata(filled)


def test_one_name_is_all_that_it_takes(registry: ModuleType, filled: Path):
    registry.check_metadata(filled)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_empty_entry_is_named(registry: ModuleType, filled: Path, entry: str):
    file = filled / "pyproject.toml"
    text, found = re.subn(rf'(?m)^{entry} = ".*"$', f'{entry} = ""', file.read_text())
    assert found == 1
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"{entry} in pyproject\.toml is empty"):
        registry.check_metadata(filled)


def test_an_icon_that_is_not_there_is_named(registry: ModuleType, filled: Path):
    (filled / "icon.svg").unlink()
    with pytest.raises(ValueError, match=r"'icon\.svg', which is no file"):
        registry.check_metadata(filled)


def test_the_command_says_what_is_wrong_in_one_sentence(registry: ModuleType, capsys):
    assert registry.main(["pack", "no-such.zip"]) == 2
    assert "no-such.zip" in capsys.readouterr().err
    assert registry.main([]) == 2


def test_what_the_pack_holds(registry: ModuleType):
    held = registry.packed_files()
    tops = {name.split("/")[0] for name in held}
    assert tops.isdisjoint({"tests", ".ci", ".github", "Makefile", "constraints.txt"})
    assert not [n for n in held if n.startswith("docs/pictures/")]
    assert all(n.endswith(".md") for n in held if n.startswith("benchmarks/"))
    everything = ("nodes", "pbe_model", "training", "locales", "subgraphs", "example_workflows")
    for folder in everything:
        tracked = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert tracked <= set(held)
    assert {"__init__.py", "requirements.txt", "pyproject.toml", "LICENSE", "README.md"} <= set(
        held
    )


def test_links_of_packed_guides_lead_to_packed_files(registry: ModuleType):
    held = set(registry.packed_files())
    seen = 0
    for page in (name for name in held if name.endswith(".md")):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if ":" in target or target.startswith("/"):
                continue
            file = Path(os.path.normpath(Path(page).parent / unquote(target))).as_posix()
            assert file in held or any(n.startswith(f"{file}/") for n in held), f"{page}: {target}"
            seen += 1
    assert seen > 20


def test_the_registrys_own_tool_packs_the_same(registry: ModuleType, tmp_path: Path):
    comfy = shutil.which("comfy", path=f"{ROOT / '.venv/registry/bin'}:{os.environ['PATH']}")
    if comfy is None:
        pytest.skip("no comfy-cli: `make pack` installs it")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], check=True)
    for name in (".comfyignore", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    command = [comfy, "--skip-prompt", "--no-enable-telemetry", "node", "pack"]
    subprocess.run(command, cwd=clone, check=True, capture_output=True, timeout=120)
    report = registry.check_pack(clone / "node.zip", clone)
    assert re.fullmatch(r"node\.zip: \d{3} files, (2\d|3\d)\.\d MB", report)


def test_an_archive_that_differs_is_refused(registry: ModuleType, tmp_path: Path):
    names = registry.packed_files()
    with zipfile.ZipFile(tmp_path / "node.zip", "w") as archive:
        for name in [*names[1:], "secret.key"]:
            archive.writestr(name, "")
    with pytest.raises(ValueError) as refused:
        registry.check_pack(tmp_path / "node.zip")
    assert repr(names[0]) in str(refused.value) and "secret.key" in str(refused.value)


@pytest.mark.host
@pytest.mark.slow
def test_what_is_packed_runs_in_comfyui(
    registry: ModuleType, comfyui: tuple[Path, Path], tmp_path: Path
):
    pack = tmp_path / "pack"
    for name in registry.packed_files():
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pack / name)
    with Host.start(*comfyui, pack, tmp_path / "base", name="paint-by-example") as host:
        run = host.run(
            {
                "1": {"class_type": "PBEExampleInputs", "inputs": {"scene": "dune"}},
                "2": {
                    "class_type": "PBEPaint",
                    "inputs": {
                        "image": ["1", 0],
                        "mask": ["1", 1],
                        "exemplar": ["1", 2],
                        "seed": 1,
                        "steps": 2,
                        "similarity": 5.0,
                        "checkpoint": "bundled demo",
                    },
                },
                "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
            }
        )
        assert run.error is None, run.error_text
        assert host.images(run, "3")[0].shape == (384, 512, 3)
        served = json.loads(host.get("/global_subgraphs")).values()
        assert len([it for it in served if it["source"] == "custom_node"]) == 2
