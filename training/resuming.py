"""Whether a run may go on from a checkpoint, and what its user should know of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import checkpoints
from training.config import RunConfig, changed_settings


def check_saved(saved: Mapping[str, Any], config: RunConfig, data_digest: str) -> list[str]:
    """Compare the state of a run with the settings that it is to go on with.

    Args:
        saved: The newest checkpoint.
        config: The settings.
        data_digest: Hash of the photos and boxes there are now.

    Returns:
        What to tell the user.

    Raises:
        ValueError: They do not fit.
    """
    folder = checkpoints.folder_of(config.out)
    if missing := [name for name in checkpoints.ENTRIES if name not in saved]:
        raise ValueError(
            f"the newest checkpoint in {folder} lacks {', '.join(missing)}, so it is not the "
            "checkpoint of a run; choose another out"
        )
    before, step = saved["config"], saved["step"]
    name = before["optim"]["name"]
    if name != config.optim.name:
        raise ValueError(
            f"{folder} was made with optim.name {name}, not {config.optim.name}; set it back, or "
            "choose another out"
        )
    notices = _of_frozen_weights(before, config, folder)
    notice = f"resuming from step {step}"
    if step >= config.steps:
        notice = f"{step} steps are done already; set steps higher to go on"
    if changed := changed_settings(before, config.model_dump(mode="json")):
        notice += " with changed settings: " + ", ".join(
            f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items()
        )
    notices.append(notice)
    if saved.get("data", data_digest) != data_digest:  # which older checkpoints lack
        notices.append(f"the photos or boxes in {config.data.root} are others than before")
    return notices


def _of_frozen_weights(before: Mapping[str, Any], config: RunConfig, folder: Path) -> list[str]:
    """What to say of changed settings that say where the frozen weights come from.

    Checkpoints hold only what is trained, and it fits only the frozen weights that it was trained
    with. Another `init_parts` always changes those. A tower's path may have changed because its
    file has moved, which only the user can tell.

    Raises:
        ValueError: Another `init_parts`.
    """
    if config.stage == "first_stage":  # starts from nothing, and all of it is trained
        return []
    parts = before.get("init_parts")
    if parts is not None and set(parts) != set(config.init_parts):
        raise ValueError(
            f"{folder} was made with init_parts {list(parts)}, not {list(config.init_parts)}, and "
            "its weights fit only the frozen ones of then; set init_parts back, or choose another "
            "out"
        )
    tower, frozen = config.init_tower, not config.train_tower or config.lora.rank
    old, new = before.get("init_tower"), None if tower is None else str(tower)
    if old == new or not frozen:
        return []
    return [
        f"init_tower was {old} and is now {new}: the image tower is frozen and not in the "
        "checkpoints, so make sure that its weights are still the same"
    ]
