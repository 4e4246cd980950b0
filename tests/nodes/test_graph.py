"""The converter from saved workflows to prompts, on a host description small enough to read."""

import copy

import pytest

from .graph import STAND_IN, is_to_choose, to_prompt, with_pictures

INFO = {
    "Load": {
        "input": {
            "required": {
                "file": [["a", "b"], {"image_upload": True}],
                "strength": ["FLOAT", {"default": 1.0}],
            }
        }
    },
    "Sample": {
        "input": {
            "required": {
                "picture": ["IMAGE", {}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT"],
                "forced": ["INT", {"forceInput": True}],
            },
            "optional": {"mask": ["MASK"], "mode": ["COMBO", {"options": ["x", "y"]}]},
        }
    },
}
WORKFLOW = {
    "nodes": [
        {"id": 1, "type": "Load", "widgets_values": ["b", "image", 0.5]},
        {
            "id": 2,
            "type": "Sample",
            "inputs": [
                {"name": "picture", "type": "IMAGE", "link": 7},
                {"name": "mask", "type": "MASK", "link": None},
                {"name": "forced", "type": "INT", "link": 8},
                {"name": "steps", "type": "INT", "link": 9, "widget": {"name": "steps"}},
            ],
            "widgets_values": [42, "randomize", 20, "y"],
        },
        {"id": 3, "type": "MarkdownNote", "widgets_values": ["text"]},
    ],
    "links": [[7, 1, 0, 2, 0, "IMAGE"], [8, 1, 1, 2, 2, "INT"], [9, 1, 1, 2, 3, "INT"]],
}


def test_widgets_get_their_names_and_links_win_over_widgets():
    assert to_prompt(WORKFLOW, INFO) == {
        "1": {"class_type": "Load", "inputs": {"file": "b", "strength": 0.5}},
        "2": {
            "class_type": "Sample",
            "inputs": {
                "picture": ["1", 0],
                "seed": 42,
                "steps": ["1", 1],
                "forced": ["1", 1],
                "mode": "y",
            },
        },
    }


def test_a_workflow_that_does_not_fit_is_refused():
    for change, message in (
        ({"type": "Unknown"}, "knows no 'Unknown'"),
        ({"mode": 4}, "muted or bypassed"),
        ({"widgets_values": [42, "randomize", 20]}, "no value for widget 'mode'"),
        ({"widgets_values": [42, "randomize", 20, "y", 1]}, r"\[1\] are left over"),
        ({"inputs": []}, r"\['forced', 'picture'\] are not connected"),
        (
            {"inputs": [*WORKFLOW["nodes"][1]["inputs"], {"name": "old", "link": 7}]},
            r"has no inputs \['old'\]",
        ),
    ):
        workflow = copy.deepcopy(WORKFLOW)
        workflow["nodes"][1].update(change)
        with pytest.raises(ValueError, match=message):
            to_prompt(workflow, INFO)


def test_widgets_that_came_after_the_file_was_saved_take_their_default():
    workflow = copy.deepcopy(WORKFLOW)
    workflow["nodes"][0]["widgets_values"] = ["b", "image"]
    assert to_prompt(workflow, INFO)["1"]["inputs"] == {"file": "b", "strength": 1.0}


def test_an_input_that_grows_is_a_row_of_sockets():
    template = {"input": {"required": {"mask": ["MASK", {}]}}, "prefix": "mask", "min": 1, "max": 3}
    info = {"input": {"required": {"masks": ["COMFY_AUTOGROW_V3", {"template": template}]}}}

    def batch(*links: int | None) -> dict:
        sockets = [{"name": f"masks.mask{i}", "link": link} for i, link in enumerate(links)]
        nodes = [{"id": 2, "type": "Batch", "inputs": sockets}]
        return {"nodes": nodes, "links": [[7, 1, 0, 2, 0, "MASK"], [8, 1, 1, 2, 1, "MASK"]]}

    assert to_prompt(batch(7, 8, None), {"Batch": info})["2"]["inputs"] == {
        "masks.mask0": ["1", 0],
        "masks.mask1": ["1", 1],
    }
    for links, message in (
        ((None, 8), r"\['masks.mask0'\] are not connected"),
        ((7, 7, 7, 8), r"has no inputs \['masks.mask3'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            to_prompt(batch(*links), {"Batch": info})


def test_a_scene_stands_in_for_pictures_that_are_to_choose():
    def load(picture: str) -> dict:
        return {"class_type": "LoadImage", "inputs": {"image": picture}}

    edit = {"image": ["1", 0], "mask": ["1", 1], "exemplar": ["2", 0], "other": ["3", 0], "seed": 1}
    prompt = {"1": load(""), "2": load(""), "3": load("mine.png")}
    prompt["4"] = {"class_type": "Edit", "inputs": edit}
    filled = with_pictures(prompt)
    assert filled == {
        "scene": {"class_type": "PBEExampleInputs", "inputs": {"scene": STAND_IN}},
        "3": load("mine.png"),
        "4": {
            "class_type": "Edit",
            "inputs": {
                "image": ["scene", 0],
                "mask": ["scene", 1],
                "exemplar": ["scene", 2],
                "other": ["3", 0],
                "seed": 1,
            },
        },
    }
    assert with_pictures(filled) is filled
    saved = {"type": "LoadImage", "widgets_values": ["", "image"]}
    assert is_to_choose(saved) and not is_to_choose({**saved, "widgets_values": ["a.png"]})
