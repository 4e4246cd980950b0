"""A node pack that makes the host run out of memory where one asks for it.

`POST /faults` with `{"place": "sampling", "after": 2, "times": 1}`: two calls of that place go
well, the next one raises what torch raises when a card is full, and so on, `times` in all.
"""

import comfy.ldm.models.autoencoder
import comfy.model_base
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}

_FIRST_STAGE = comfy.ldm.models.autoencoder.AutoencodingEngineLegacy
PLACES = {
    "sampling": (comfy.model_base.BaseModel, "_apply_model"),
    "encode": (_FIRST_STAGE, "encode"),
    "decode": (_FIRST_STAGE, "decode"),
}
_due: dict[str, list[int]] = {}


def _may_fail(place: str, owner: type, name: str) -> None:
    """Put a function in the place of a method that first looks whether it is to fail."""
    method = getattr(owner, name)

    def called(*args, **options):
        after, times = _due.get(place, (0, 0))
        if times and after:
            _due[place][0] -= 1
        elif times:
            _due[place][1] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return method(*args, **options)

    setattr(owner, name, called)


for _place, (_owner, _name) in PLACES.items():
    _may_fail(_place, _owner, _name)


@PromptServer.instance.routes.post("/faults")
async def _set(request: web.Request) -> web.Response:
    asked = await request.json()
    left = _due.get(asked["place"], [0, 0])[1]
    _due[asked["place"]] = [asked["after"], asked["times"]]
    return web.json_response({"left": left})
