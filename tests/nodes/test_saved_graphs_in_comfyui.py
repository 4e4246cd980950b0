"""Graphs saved with earlier versions of the pack open and run unchanged.

`saved_graphs` holds templates as they were shipped, and in `prompts.json` what they meant then: the
value of every input by its name. The page stores widgets by their place, so an input that came in
between, was moved or renamed would shift the values of all that follow.
"""

import json
from pathlib import Path

import pytest

from .graph import to_prompt
from .host import Host

pytestmark = [pytest.mark.host, pytest.mark.slow]

SAVED = Path(__file__).with_name("saved_graphs")
MEANT = json.loads((SAVED / "prompts.json").read_text(encoding="utf-8"))


def test_ten_graphs_are_kept():
    assert len(MEANT) == 10
    assert sorted(MEANT) == sorted(p.stem for p in SAVED.glob("*.json") if p.stem != "prompts")


@pytest.mark.parametrize("name", MEANT)
def test_a_saved_graph_means_what_it_meant(host: Host, name: str):
    graph = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    now = to_prompt(graph, host.object_info())
    assert sorted(now) == sorted(MEANT[name])
    for number, then in MEANT[name].items():
        assert now[number]["class_type"] == then["class_type"]
        kept = {key: now[number]["inputs"].get(key) for key in then["inputs"]}
        assert kept == then["inputs"], f"{name}, node {number}"


@pytest.mark.parametrize("name", MEANT)
def test_a_saved_graph_runs(host: Host, name: str):
    """As it was queued then, without the inputs that came later; in fewer steps."""
    prompt = json.loads(json.dumps(MEANT[name]))
    graph = json.loads((SAVED / f"{name}.json").read_text(encoding="utf-8"))
    if any(node["properties"].get("models") for node in graph["nodes"]):
        pytest.skip("needs the weights of another model")
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    run = host.run(prompt)
    assert run.error is None, run.error_text
    shown = [n for n, it in prompt.items() if it["class_type"] in ("PreviewImage", "SaveImage")]
    assert shown and all(host.images(run, number) for number in shown)
