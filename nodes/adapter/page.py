"""Texts below the nodes in the page."""

from __future__ import annotations

import functools
import logging

from comfy_execution.utils import get_executing_context


def show(node_id: str | None, text: str) -> None:
    """Show a text below a node."""
    from server import PromptServer  # not there in the host's command-line tools

    page = PromptServer.instance
    page.send_progress_text(text, node_id, page.client_id)


def warn(message: str) -> None:
    """Show a sentence below the node that is running and in the log, once a run."""
    context = get_executing_context()
    shown = _shown(context and context.prompt_id, context and context.node_id)
    if message in shown:
        return
    shown.append(message)
    logging.warning(message)
    if context:
        show(context.node_id, "\n".join(shown))


@functools.lru_cache(maxsize=16)
def _shown(prompt_id: str | None, node_id: str | None) -> list[str]:
    """The sentences below a node in a run."""
    del prompt_id, node_id
    return []
