"""A real ComfyUI as a process, driven over its own HTTP and websocket routes."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}

_PREVIEW = 1  # `BinaryEventTypes.PREVIEW_IMAGE` of the host
_SILENCE = 60.0  # most seconds without a message


class HostError(RuntimeError):
    """It did not start, or a prompt failed; the message ends with its own words."""


@dataclass
class Ran:
    """What a prompt did.

    Attributes:
        pictures: References to the pictures of output nodes, by node id.
        steps: The last step that a sampler announced.
        previews: How many came.
        cancelled: Seconds from asking for it to the end, if it was.
        held: The most memory that was held at the end of a step, if it was watched.
    """

    pictures: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    steps: int = 0
    previews: int = 0
    cancelled: float | None = None
    held: int = 0


class ComfyUI:
    """A running server; a `with` block ends it.

    Args:
        server: Folder of its `main.py`.
        base: Folder for what it writes, made here; the node pack is linked into it.
        packages: Folder of packages for it alone, or one that is not there.
        words: More arguments.
        seconds: That it may take to answer.

    Raises:
        HostError: It ended, or is silent.
    """

    def __init__(
        self, server: Path, base: Path, packages: Path, words: Sequence[str], seconds: float
    ) -> None:
        for name in ("custom_nodes", "user", "page"):
            (base / name).mkdir(parents=True)
        (base / "page/index.html").write_text("<!doctype html>", encoding="utf-8")
        (base / "custom_nodes/paint-by-example").symlink_to(REPOSITORY, target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.client = uuid.uuid4().hex
        self._log = base / "log.txt"
        command = [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--port", str(port),
            "--base-directory", str(base), "--user-directory", str(base / "user"),
            "--front-end-root", str(base / "page"), "--database-url", "sqlite:///:memory:",
            "--disable-auto-launch", "--disable-api-nodes", "--preview-method", "latent2rgb",
            *words,
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=server, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}
            )
        try:
            self._wait(time.monotonic() + seconds)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> ComfyUI:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        """The answer of a route, from JSON."""
        return json.loads(self._read(path))

    def picture(self, ran: Ran, node: str) -> np.ndarray:
        """The first picture of an output node, `(H, W, 3)` of 8 bits."""
        reference = ran.pictures[node][0]
        query = "&".join(f"{name}={value}" for name, value in reference.items())
        with Image.open(io.BytesIO(self._read(f"/view?{query}"))) as image:
            return np.asarray(image)

    def memory(self) -> dict[str, int]:
        """Bytes in use: of the process, and of the card if it has one."""
        found = {"process": self._resident()}
        device = self.get("/system_stats")["devices"][0]
        if device["type"] == "cuda":
            found["card"] = device["vram_total"] - device["vram_free"]
        return found

    def held(self) -> int:
        """Bytes that are in use or kept for later: as `memory`, but with torch's cache."""
        return self._held(self.get("/system_stats"))

    def _held(self, stats: dict[str, Any]) -> int:
        device = stats["devices"][0]
        if device["type"] == "cuda":
            return device["vram_total"] - device["vram_free"] + device["torch_vram_free"]
        return self._resident()

    def _resident(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        (resident,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(resident.split()[1]) * 1024

    def free(self) -> None:
        """Have it unload all models and forget all results, as by the page's button."""
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        request = urllib.request.Request(f"http://{self.address}/free", data=body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30):
            pass

    def run(self, prompt: Prompt, cancel_at: int | None = None, *, watch: bool = False) -> Ran:
        """Queue a prompt and follow it to its end.

        Args:
            prompt: In the form of its API.
            cancel_at: The step at which it is cancelled, as by the page's button.
            watch: Ask for its memory at every step.

        Raises:
            HostError: It was refused, or a node failed.
        """
        return asyncio.run(self._run(prompt, cancel_at, watch))

    async def _run(self, prompt: Prompt, cancel_at: int | None, watch: bool) -> Ran:
        url, ran, asked = f"http://{self.address}", Ran(), 0.0
        queued = {"prompt": prompt, "client_id": self.client}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/ws?clientId={self.client}", max_msg_size=0) as events,
        ):
            async with session.post(f"{url}/prompt", json=queued) as answer:
                if answer.status != 200:
                    raise HostError(await answer.text())
            while True:
                try:
                    message = await events.receive(_SILENCE)
                except asyncio.TimeoutError:
                    raise HostError(
                        f"silent for {_SILENCE:.0f} s; its log:\n{self.log[-4000:]}"
                    ) from None
                if message.type is aiohttp.WSMsgType.BINARY:
                    ran.previews += int.from_bytes(message.data[:4], "big") == _PREVIEW
                    continue
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise HostError(f"the connection ended; its log:\n{self.log[-4000:]}")
                event = json.loads(message.data)
                data = event["data"]
                match event["type"]:
                    case "executed":
                        ran.pictures[data["node"]] = data["output"].get("images", [])
                    case "progress":
                        ran.steps = data["value"]
                        if watch:
                            async with session.get(f"{url}/system_stats") as answer:
                                ran.held = max(ran.held, self._held(await answer.json()))
                        if ran.steps == cancel_at:
                            asked = time.monotonic()
                            await session.post(f"{url}/interrupt", json={})
                    case "execution_success":
                        return ran
                    case "execution_interrupted":
                        ran.cancelled = time.monotonic() - asked
                        return ran
                    case "execution_error":
                        trace = "".join(data["traceback"])
                        raise HostError(f"{trace}\n{data['exception_message'].strip()}")

    def _wait(self, until: float) -> None:
        while True:
            try:
                self._read("/system_stats")
                return
            except OSError:
                ended = self.process.poll() is not None
            if ended or time.monotonic() > until:
                how = f"ended with code {self.process.returncode}" if ended else "does not answer"
                raise HostError(f"ComfyUI {how}; its log:\n{self.log[-4000:]}")
            time.sleep(0.2)

    def _read(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as response:
            return response.read()
