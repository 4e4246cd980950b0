"""Prompts as programs send them: any widget values, and what is no prompt at all.

Each ends in a picture or in a sentence, and the host answers the next as if nothing had been. A few
examples here, the same every time; many in `make soak` (see `tests/property/examples.py`).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st

from pbe_model import TINY, PaintByExample
from pbe_model.checkpoints.save import save_model

from ..property.examples import examples, refusal
from .host import Host, HostError, Prompt, node
from .test_in_comfyui import graph

pytestmark = [pytest.mark.host, pytest.mark.slow]

NAME = "paint_by_example/prompts.safetensors"
PACK = "PBE"
MOST = {"steps": 2, "resolution": 128, "variations": 3, "width": 128, "height": 128}
"""Largest values tried of what costs time; the node's own limit may be higher."""
WITHIN = {
    "expand": 40,
    "feather": 40,
    "blend": 40,
    "left": 60,
    "right": 60,
    "top": 60,
    "bottom": 60,
}
"""Largest sizes tried of what has a sign."""


@pytest.fixture(scope="module")
def reference(host: Host) -> bytes:
    """What the host paints when it has seen nothing odd."""
    folder = host.base / "models/paint_by_example"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_model(folder / "prompts.safetensors", PaintByExample(TINY).eval())
    return painted(host)


def painted(host: Host) -> bytes:
    """A picture that is not in the host's cache: another picture comes first."""
    for seed in (7, 8):
        run = host.run(graph(NAME, seed=seed, steps=1), timeout=120)
        assert run.error is None, run.error_text
    return host.images(run, "5")[0].tobytes()


def workshop() -> Prompt:
    """All nodes that take widgets and no file of a user's, in one graph."""
    prompt = graph(NAME, steps=1)
    prompt["1"]["inputs"]["attention"] = "auto"
    prompt["10"] = node("PBEMaskAugmenter", mask=["2", 1])
    prompt["11"] = node("PBECrop", image=["2", 0], mask=["10", 0])
    prompt["12"] = node("PBEStitch", stitch=["11", 2], crop=["11", 0])
    prompt["4"]["inputs"]["mask"] = ["10", 0]
    prompt["13"] = node("PreviewImage", images=["12", 0])
    return prompt


def widgets(info: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Kinds and options of a node's widgets by name."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            options = options[0] if options else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                found[name] = kind, options
    return found


def value_of(name: str, kind: str, options: dict[str, Any]) -> st.SearchStrategy:
    """Any value that the page lets one enter, as far as it does not take long."""
    if kind == "BOOLEAN":
        return st.booleans()
    if kind == "COMBO":
        return st.sampled_from(options["options"])
    if kind == "STRING":
        return st.text(max_size=6) | st.sampled_from(("1, 0.5", "0", "-1", "a/b"))
    least, most = options["min"], options["max"]
    most = min(most, MOST.get(name, most), WITHIN.get(name, most))
    least = max(least, -WITHIN.get(name, -least))
    if kind == "INT":
        ends = st.sampled_from((least, most, min(max(1, least), most)))
        return ends | st.integers(least, most)
    return st.sampled_from((least, most)) | st.floats(least, most)


SOCKETS = frozenset(
    ("model", "positive", "negative", "vae", "image", "mask", "encoder", "exemplar", "images")
)


def outcome(host: Host, prompt: Prompt) -> str:
    """How a prompt ends: "" after a picture, else the sentence of the host or of a node.

    The host hands on whatever stands where a link should be, and what comes of that is its own
    affair; of everything else the node says what is wrong.
    """
    note(json.dumps(prompt))
    try:
        run = host.run(prompt, timeout=300)
    except HostError as refused:
        assert host.process.poll() is None
        return str(refused)
    if run.error is None:
        return ""
    inputs = prompt[run.error["node_id"]]["inputs"]
    if all(isinstance(inputs.get(name), list) for name in inputs.keys() & SOCKETS):
        assert run.error["exception_type"] == "ValueError", run.error
    return refusal(ValueError(run.error_text))


@examples(4)
@given(data=st.data())
def test_any_widget_values(host: Host, reference: bytes, data: st.DataObject):
    del reference
    prompt = workshop()
    for entry in prompt.values():
        if not entry["class_type"].startswith(PACK):
            continue
        info = host.object_info(entry["class_type"])[entry["class_type"]]
        for name, (kind, options) in widgets(info).items():
            if name == "checkpoint":
                continue
            required = name in info["input"].get("required", {})
            if required or data.draw(st.booleans()):
                entry["inputs"][name] = data.draw(value_of(name, kind, options), label=name)
    outcome(host, prompt)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(("NaN", "nan", "inf", "-1", "1e999", "", "\x1b[31m", "../../etc/passwd")),
        st.text(max_size=6),
        # A link. The host's queue ends for good after one to an output that a node has not.
        st.tuples(st.sampled_from(("1", "2", "3", "4", "99")), st.integers(0, 1)).map(list),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@examples(10)
@given(data=st.data())
def test_malformed_prompts(host: Host, reference: bytes, data: st.DataObject):
    """Inputs that are missing, unknown, of another type, out of range, or links to nowhere."""
    del reference
    prompt = copy.deepcopy(graph(NAME, steps=1))
    for _ in range(data.draw(st.integers(1, 3))):
        inputs = prompt[data.draw(st.sampled_from("1234"))]["inputs"]
        name = data.draw(st.sampled_from(sorted(inputs) or [""]) | st.text(max_size=4))
        if data.draw(st.booleans()):
            inputs[name] = data.draw(JSON)
        else:
            inputs.pop(name, None)
    outcome(host, prompt)


def test_afterwards_the_host_is_as_it_was(host: Host, reference: bytes):
    assert painted(host) == reference
    assert Path(f"/proc/{host.process.pid}").exists() or host.process.poll() is None
