"""The pack in the host's page, in a real browser: template, run, picture, help, translation."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import HOW_TO_GET_IT, REPOSITORY
from .host import Host, find_host

pytestmark = [pytest.mark.host, pytest.mark.slow]

PACK = "paint-by-example"
MODULES = Path(os.environ.get("NODE_PATH", REPOSITORY / ".venv/browser/node_modules"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HELP = REPOSITORY / "nodes/web/docs/PBEExemplarEncoder.md"
LABELS = REPOSITORY / "locales/ko/nodeDefs.json"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the browser saw; the screenshots lie beside it."""
    found = find_host()
    if found is None:
        pytest.skip(HOW_TO_GET_IT)
    if CHROMIUM is None or shutil.which("node") is None:
        pytest.skip("no browser: install chromium and node, then `make browser`")
    if not (MODULES / "playwright-core").is_dir():
        pytest.skip("no playwright-core: `make browser` installs it")
    folder = tmp_path_factory.mktemp("browser")
    with Host.start(*found, REPOSITORY, folder / "base", name=PACK) as host:
        exemplars = host.object_info("PBELoadExemplar")["PBELoadExemplar"]["input"]["required"]
        script = Path(__file__).with_name("browser.mjs")
        done = subprocess.run(
            ["node", str(script), f"http://{host.address}/", PACK, CHROMIUM, str(folder)],
            env={**os.environ, "NODE_PATH": str(MODULES)},
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "exemplars": exemplars["exemplar"]}


def test_the_template_loads_without_red_boxes_or_errors(seen: dict):
    assert {"PBELoader", "PBEExemplarEncoder", "PBEInpaintSampler"} <= {
        node["type"] for node in seen["nodes"]
    }
    assert [node for node in seen["nodes"] if node["red"] or not node["known"]] == []
    assert seen["errors"] == []


def test_queueing_it_shows_progress_and_the_picture(seen: dict):
    assert len(set(seen["progress"])) >= 3
    assert seen["progress"] == sorted(seen["progress"])
    assert seen["result"] == [512, 384]  # of the bundled photo


def test_the_help_page_is_shown(seen: dict):
    first = next(line for line in HELP.read_text().splitlines() if line and line[0] not in "#|!")
    assert first.replace("`", "").replace("*", "")[:60] in seen["help"]


def test_a_list_without_files_says_so(seen: dict):
    assert "none saved yet" in json.dumps(seen["exemplars"])


def test_labels_are_translated(seen: dict):
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    assert seen["korean"] == labels["PBEInpaintSampler"]["display_name"]
