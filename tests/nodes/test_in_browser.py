"""The pack in the host's page, in a real browser: template, run, picture, help, translation."""

import json
from pathlib import Path

import pytest

from .browser import Browser
from .conftest import REPOSITORY
from .host import Host

pytestmark = [pytest.mark.host, pytest.mark.slow]

PACK = "paint-by-example"
HELP = REPOSITORY / "nodes/web/docs/PBEExemplarEncoder.md"
LABELS = REPOSITORY / "locales/ko/nodeDefs.json"


@pytest.fixture(scope="module")
def seen(
    comfyui: tuple[Path, Path], browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    """What the browser saw; the screenshots lie beside it."""
    folder = tmp_path_factory.mktemp("browser")
    with Host.start(*comfyui, REPOSITORY, folder / "base", name=PACK) as host:
        exemplars = host.object_info("PBELoadExemplar")["PBELoadExemplar"]["input"]["required"]
        script = Path(__file__).with_name("browser.mjs")
        arguments = (f"http://{host.address}/", PACK, browser.chromium, str(folder))
        printed = browser.drive(script, *arguments, timeout=400)
    return {**json.loads(printed.splitlines()[-1]), "exemplars": exemplars["exemplar"]}


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
