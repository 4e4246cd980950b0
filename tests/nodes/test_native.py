"""Runs the checks of our MODEL beside the host's own models, in the host's interpreter."""

import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILED = "TorchCompileModel, inductor"
SOMETIMES = (COMPILED, "ComfyUI_IPAdapter_plus")
"""How rows of the table of patches end that not every run of the tests makes."""
# What runs in one start of the host, one after the other.
QUICK = ("adapter_checks", "lora_checks", "sampler_checks", "memory_checks")  # makes memory small
LONG = ("patch_checks", "native_checks")
Results = dict[str, dict]


def run(modules: tuple[str, ...], installed: tuple[Path, Path]) -> Results:
    """Results by module, from the Python of a ComfyUI, which may not be running."""
    comfyui, python = installed
    process = subprocess.run(
        [str(python), str(HERE / "checks.py"), str(comfyui), str(ROOT), *modules],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr[-4000:]
    found = json.loads(process.stdout.splitlines()[-1])
    failed = [result for result in found.values() if isinstance(result, str)]
    assert not failed, "\n".join(failed)
    return found


def checks(module: str) -> list[str]:
    """The names of the checks in a module."""
    text = (HERE / f"{module}.py").read_text(encoding="utf-8")
    return re.findall(r"^def (check_\w+)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def quick(comfyui: tuple[Path, Path]) -> Results:
    return run(QUICK, comfyui)


@pytest.fixture(scope="module")
def long(comfyui: tuple[Path, Path]) -> Results:
    return run(LONG, comfyui)


@pytest.fixture(scope="module")
def patches(long: Results) -> dict[str, dict]:
    return long["patch_checks"]


def each_check(*modules: str) -> pytest.MarkDecorator:
    """Run a test with every module and the name of every check in it."""
    pairs = [(module, check) for module in modules for check in checks(module)]
    return pytest.mark.parametrize(("module", "check"), pairs)


@each_check("adapter_checks", "lora_checks", "memory_checks")
def test_checks(quick: Results, module: str, check: str):
    assert quick[module][check] is None, quick[module][check]


def table(first: str) -> dict[str, str]:
    """The table of docs/nodes.md whose first column is headed so: second column by first."""
    lines = (ROOT / "docs/nodes.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {re.sub(r"\*", "", name): text for name, text in cells}


@pytest.mark.long
@pytest.mark.parametrize("check", checks("patch_checks"))
def test_patches(patches: dict[str, dict], check: str):
    assert patches["checks"][check] is None, patches["checks"][check]


@pytest.mark.long
def test_patches_give_what_they_give_on_the_host_s_own_model(patches: dict[str, dict]):
    """As the table says it: on other machines sums round otherwise, so up to five times as much."""
    found, told = patches["differences"], table("patch")
    failed = {name: error for name, error in found.items() if isinstance(error, str)}
    assert not failed, failed
    there = {name for name in told if not name.endswith(SOMETIMES) or name in found}
    assert set(found) == there and len(there) > 30
    for name, difference in found.items():
        assert difference <= min(1e-4, 5 * float(told[name])), (name, difference)


@pytest.mark.skipif("COMPILE" not in os.environ, reason="compiles C++ for minutes: set COMPILE=1")
def test_the_compile_node_with_its_real_compiler(
    comfyui: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One graph for each number of tokens of ours, and one for the host's own model."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # really compiled, here and now
    found = run(("compile_checks",), comfyui)["compile_checks"]
    assert found["breaks"] == 0 and found["graphs"] == 3, found
    assert found["difference"] <= min(1e-4, 5 * float(table("patch")[COMPILED])), found


@pytest.mark.long
def test_what_cannot_apply_says_so(patches: dict[str, dict]):
    """In the words of the table."""
    said, told = patches["sentences"], table("what does not apply")
    there = {name for name in told if "IPAdapter" not in name or name in said}
    assert {name: said[name] for name in there} == {name: told[name] for name in there}
    assert set(said) == there


@pytest.mark.long
@pytest.mark.parametrize("check", checks("native_checks"))
def test_full_size(long: Results, check: str):
    assert long["native_checks"][check] is None, long["native_checks"][check]


def test_samplers_and_schedulers(quick: Results):
    """No pair that the host's own SD 1.5 bears fails on our MODEL; `make soak` tries them all."""
    found = quick["sampler_checks"]
    least = 300 if "EVERY_PAIR" in os.environ else 45
    assert len(found) > least
    assert sum(theirs == "ok" for _, theirs in found.values()) > least
    assert [name for name, (ours, theirs) in found.items() if theirs == "ok" != ours] == []
