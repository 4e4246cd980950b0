"""The pack in the host's page, in a real browser.

`browser.mjs` looks at a template, its run, its picture, a help page and a translation.
`first_minute.mjs` does what a new user does, by mouse and keyboard and in both renderers of nodes:
the blueprint is dropped into an empty graph and run with the example inputs; the app is opened,
given its pictures, its mask painted, and run; graphs of two older packs are opened, and the nodes
that are offered in place of theirs accepted and run; every template is looked at. It leaves a
screenshot of each.
"""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from PIL import Image

from pbe_model.scenes import load_scenes

from .browser import Browser
from .conftest import REPOSITORY
from .host import Host

pytestmark = [pytest.mark.host, pytest.mark.slow]

PACK = "paint-by-example"
HELP = REPOSITORY / "nodes/web/docs/PBEExemplarEncoder.md"
LABELS = REPOSITORY / "locales/ko/nodeDefs.json"
TEMPLATES = sorted((REPOSITORY / "example_workflows").glob("*.json"))
OLD = sorted(Path(__file__).with_name("foreign_graphs").glob("*.json"))
RENDERERS = ("classic", "vue")
SHARED_EDGE = 1.0
"""Pixels of the graph by which boxes may overlap: the page rounds."""

Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def host(
    comfyui: tuple[Path, Path], browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A ComfyUI that has the pack under its own name, as the page shows it."""
    base = tmp_path_factory.mktemp("browser") / "base"
    with Host.start(*comfyui, REPOSITORY, base, name=PACK) as running:
        yield running


@pytest.fixture(scope="module")
def glanced(host: Host, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `browser.mjs` saw; the screenshots lie beside it."""
    exemplars = host.object_info("PBELoadExemplar")["PBELoadExemplar"]["input"]["required"]
    script = Path(__file__).with_name("browser.mjs")
    folder = tmp_path_factory.mktemp("glanced")
    arguments = (f"http://{host.address}/", PACK, browser.chromium, str(folder))
    printed = browser.drive(script, *arguments, timeout=400)
    return {**json.loads(printed.splitlines()[-1]), "exemplars": exemplars["exemplar"]}


@pytest.fixture(scope="module")
def seen(host: Host, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `first_minute.mjs` saw; the screenshots lie in its `folder`."""
    folder = tmp_path_factory.mktemp("first_minute")
    (scene,) = (scene for scene in load_scenes() if scene.name == "deck")
    photo, exemplar = (_to_picture(it) for it in (scene.photo, scene.exemplar))
    chosen = [folder / "my photo.png", folder / "my exemplar.png"]
    photo.save(chosen[0])
    exemplar.save(chosen[1])
    masked = photo.copy()
    masked.putalpha(_to_picture(1 - scene.hole_mask))
    inputs = host.base / "input"
    inputs.mkdir(exist_ok=True)
    masked.save(inputs / "photo.png")
    exemplar.save(inputs / "exemplar.jpg")
    given = {
        "url": f"http://{host.address}/",
        "chromium": browser.chromium,
        "pack": PACK,
        "folder": str(folder),
        "pictures": [str(path) for path in chosen],
        "old": {path.stem: _read(path) for path in OLD},
        "templates": {path.stem: _read(path) for path in TEMPLATES},
    }
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    script = Path(__file__).with_name("first_minute.mjs")
    printed = browser.drive(script, str(folder / "given.json"), timeout=580)
    seen = json.loads(printed.splitlines()[-1])
    for renderer in RENDERERS:
        app = seen[renderer]["app"]
        reference = dict(parse_qsl(urlsplit(app["result"][2]).query))
        app["painted"] = host.image(reference)
    seen["prompts"] = [run["prompt"][2] for run in json.loads(host.get("/history")).values()]
    return {**seen, "photo": np.asarray(photo)}


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _to_picture(values) -> Image.Image:
    return Image.fromarray((values.numpy() * 255).round().astype(np.uint8))


def test_the_template_loads_without_red_boxes_or_errors(glanced: dict):
    assert {"PBELoader", "PBEExemplarEncoder", "PBEInpaintSampler"} <= {
        node["type"] for node in glanced["nodes"]
    }
    assert [node for node in glanced["nodes"] if node["red"] or not node["known"]] == []
    assert glanced["errors"] == []


def test_queueing_it_shows_progress_and_the_picture(glanced: dict):
    assert len(set(glanced["progress"])) >= 3
    assert glanced["progress"] == sorted(glanced["progress"])
    assert glanced["result"] == [512, 384]  # of the bundled photo


def test_the_help_page_is_shown(glanced: dict):
    first = next(line for line in HELP.read_text().splitlines() if line and line[0] not in "#|!")
    assert first.replace("`", "").replace("*", "")[:60] in glanced["help"]


def test_a_list_without_files_says_so(glanced: dict):
    assert "none saved yet" in json.dumps(glanced["exemplars"])


def test_labels_are_translated(glanced: dict):
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    assert glanced["korean"] == labels["PBEInpaintSampler"]["display_name"]


@pytest.mark.long
@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_blueprint_from_the_search_runs_with_the_example_inputs(seen: dict, renderer: str):
    assert seen[renderer]["blueprint"]["result"] == [512, 384]


@pytest.mark.long
@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_app_opens_as_an_app_with_its_inputs_and_no_complaints(seen: dict, renderer: str):
    app = seen[renderer]["app"]
    assert not app["graph"] and app["complaints"] == 0
    names = [text.split("\n")[0] for text in app["inputs"]]
    assert names == ["photo", "exemplar", "similarity", "seed", "model"]


@pytest.mark.long
@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_app_paints_where_the_mask_was_painted_in_the_page(seen: dict, renderer: str):
    app = seen[renderer]["app"]
    painted, photo = app["painted"].astype(int), seen["photo"].astype(int)
    assert app["result"][:2] == [512, 384] and painted.shape == photo.shape
    changed = np.abs(painted - photo).max(-1) > 8
    assert 0.01 < changed.mean() < 0.5
    assert not changed[:96].any()  # the stroke was in the lower half


@pytest.mark.long
@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", [path.stem for path in OLD])
def test_an_old_graph_runs_with_the_nodes_that_are_offered(seen: dict, renderer: str, name: str):
    old = seen[renderer]["old"][name]
    assert "PBEPaint" in old["offered"] and "Replace All" in old["offered"]
    assert "PBEPaint" in old["nodes"]
    assert not any(node.startswith("PaintbyExample") for node in old["nodes"])
    assert old["result"] == [512, 384]


@pytest.mark.long
def test_an_old_graph_keeps_its_seed_steps_and_guidance(seen: dict):
    nodes = [node for prompt in seen["prompts"] for node in prompt.values()]
    inputs = [node["inputs"] for node in nodes if node["class_type"] == "PBEPaint"]
    wanted = {"seed": 156680208700286, "steps": 4, "similarity": 3.5}
    kept = [it for it in inputs if {key: it[key] for key in wanted} == wanted]
    assert len(kept) == len(RENDERERS)


@pytest.mark.long
@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", [path.stem for path in TEMPLATES])
def test_nothing_of_a_template_overlaps_or_is_cut_off(seen: dict, renderer: str, name: str):
    template = seen[renderer]["templates"][name]
    for boxes in (template["nodes"], template["groups"]):
        for (one, a), (other, b) in combinations(boxes, 2):
            assert not _overlap(a, b), f"{one} over {other}"
    for node, box in template["nodes"]:
        for group, around in template["groups"]:
            assert not _overlap(box, around) or _within(box, around), f"{node} leaves {group}"
    assert template["cut"] == []


def _overlap(a: Box, b: Box) -> bool:
    return (
        min(a[2], b[2]) - max(a[0], b[0]) > SHARED_EDGE
        and min(a[3], b[3]) - max(a[1], b[1]) > SHARED_EDGE
    )


def _within(a: Box, b: Box) -> bool:
    return (
        a[0] >= b[0] - SHARED_EDGE
        and a[1] >= b[1] - SHARED_EDGE
        and a[2] <= b[2] + SHARED_EDGE
        and a[3] <= b[3] + SHARED_EDGE
    )
