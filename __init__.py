"""ComfyUI's entry point: the node pack in `nodes/`, and its help pages.

ComfyUI is imported only when it asks for the nodes, so the checkout can be imported without it.
"""

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    """The extension that ComfyUI registers; called once by the host."""
    from .nodes import PaintByExampleExtension

    return PaintByExampleExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
