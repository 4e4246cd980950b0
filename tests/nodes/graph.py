"""From a workflow as ComfyUI's page saves it to a prompt as ComfyUI's server takes it.

The page (litegraph) stores widget values as a bare list, in the order in which it builds the
widgets; the server wants them by name. The order follows from `/object_info`: required inputs, then
optional ones, skipping those that are sockets. Two kinds of widgets exist on the page only and hold
a place in the list: "control after generate" behind a seed, and the upload button behind a file.
An input that grows ("Autogrow") is a row of sockets, such as `masks.mask0` and `masks.mask1`.
Subgraphs, reroutes, and muted or bypassed nodes are refused, since the shipped workflows have none.
"""

from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
GROWING = "COMFY_AUTOGROW_V3"
PAGE_ONLY_NODES = {"Note", "MarkdownNote"}
SEED_NAMES = {"seed", "noise_seed"}
STAND_IN = "deck"
"""The bundled scene for graphs that leave it to the user to choose pictures."""


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert a saved workflow.

    Args:
        workflow: the parsed JSON file.
        object_info: the answer of the host's `/object_info`.

    Returns:
        The prompt: node id -> `class_type` and `inputs`; a link is `[node id, output slot]`.

    Raises:
        ValueError: the workflow does not fit the nodes that the host knows.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in PAGE_ONLY_NODES:
            continue
        if node["type"] not in object_info:
            raise ValueError(f"node {node['id']}: the host knows no {node['type']!r}")
        if node.get("mode", 0) != 0:
            raise ValueError(f"node {node['id']} ({node['type']}) is muted or bypassed")
        specs, required = _input_specs(object_info[node["type"]])
        inputs = _widget_values(node, specs)
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = sources[socket["link"]]
        _check_names(node, set(inputs), set(specs), required)
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def is_to_choose(node: dict[str, Any]) -> bool:
    """Whether a node of a saved workflow waits for a picture."""
    return node["type"] == "LoadImage" and node["widgets_values"][0] == ""


def with_pictures(prompt: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A prompt with the scene `STAND_IN` in the place of pictures that are still to choose.

    A picture whose mask is used is the photo, another one the exemplar.
    """
    used = {
        tuple(value)
        for node in prompt.values()
        for value in node["inputs"].values()
        if isinstance(value, list)
    }
    taken: dict[tuple[str, int], list[Any]] = {}
    for name, node in prompt.items():
        if node["class_type"] == "LoadImage" and node["inputs"]["image"] == "":
            is_photo = (name, 1) in used
            taken[name, 0] = ["scene", 0 if is_photo else 2]
            taken[name, 1] = ["scene", 1]
    if not taken:
        return prompt
    filled = {"scene": {"class_type": "PBEExampleInputs", "inputs": {"scene": STAND_IN}}}
    for name, node in prompt.items():
        if (name, 0) not in taken:
            inputs = {
                key: taken.get(tuple(value), value) if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            }
            filled[name] = {**node, "inputs": inputs}
    return filled


def _input_specs(info: dict[str, Any]) -> tuple[dict[str, tuple[Any, dict[str, Any]]], set[str]]:
    """Type and options of every input of a node, in the page's order, and the required names."""
    specs, required = {}, set()
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            if kind == GROWING:
                template = options[0]["template"]
                names = [f"{name}.{template['prefix']}{i}" for i in range(template["max"])]
                least = template["min"]
                ((kind, *options),) = template["input"]["required"].values()
            else:
                names, least = [name], 1
            specs |= dict.fromkeys(names, (kind, options[0] if options else {}))
            if group == "required":
                required.update(names[:least])
    return specs, required


def _widget_values(node: dict[str, Any], specs: dict[str, tuple[Any, dict]]) -> dict[str, Any]:
    values = list(node.get("widgets_values", []))
    inputs = {}
    for name, (kind, options) in specs.items():
        is_widget = isinstance(kind, list) or kind in WIDGET_TYPES
        if not is_widget or options.get("forceInput"):
            continue
        if not values and "default" in options:
            inputs[name] = options["default"]  # a widget that came after the file was saved
            continue
        if not values:
            raise ValueError(f"node {node['id']} ({node['type']}): no value for widget {name!r}")
        inputs[name] = values.pop(0)
        seed_control = options.get("control_after_generate", kind == "INT" and name in SEED_NAMES)
        if values and (seed_control or options.get("image_upload")):
            values.pop(0)
    if values:
        raise ValueError(
            f"node {node['id']} ({node['type']}): widget values {values} are left over"
        )
    return inputs


def _check_names(
    node: dict[str, Any], given: set[str], known: set[str], required: set[str]
) -> None:
    if missing := required - given:
        raise ValueError(f"node {node['id']} ({node['type']}): {sorted(missing)} are not connected")
    if foreign := given - known:
        raise ValueError(f"node {node['id']} ({node['type']}) has no inputs {sorted(foreign)}")
