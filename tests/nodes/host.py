"""A small client for a real ComfyUI: start it, queue prompts, follow them, fetch pictures, stop it.

The host always runs in its own interpreter as a subprocess and in a base directory of its own, so
that a user's models, outputs and settings stay untouched and nothing of ComfyUI is imported here.
Our checkout is linked in under a name that differs from the repository's, because a node pack has
to work under any package name. HTTP routes and websocket messages are those of ComfyUI's
`server.py`; previews are binary frames: two big-endian 32-bit numbers, the event and the length of
a JSON object about the picture, that object, then a JPEG or PNG file.
"""

import io
import json
import os
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websocket
from PIL import Image

Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}

PREVIEW_OF_A_NODE, TEXT = 4, 3  # of the host's `BinaryEventTypes`
FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
"""What the page tells the host: previews are to say which node they belong to."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


class HostError(RuntimeError):
    """The host did not start, or refused a prompt. `args[0]` says why."""


@dataclass
class Run:
    """What one queued prompt did.

    Attributes:
        outputs: what nodes show in the page (their `ui` output), by the id of the node that shows
            it: for nodes inside an expanded one, that of the one on the canvas.
        executed: the ids of the nodes that ran (cached ones did not), in order.
        progress: (node id, value, maximum) of every progress event.
        previews: the preview pictures, decoded, RGB.
        preview_nodes: the id of the node that shows each of them, as in `outputs`.
        texts: (node id, text) of everything that was shown below a node.
        error: the host's `execution_error` message, or None.
        interrupted: whether the run was cancelled.
    """

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    preview_nodes: list[str] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    interrupted: bool = False

    @property
    def error_text(self) -> str:
        """The message of the exception that a node raised; empty without one."""
        return self.error["exception_message"].strip() if self.error else ""


class Host:
    """One running ComfyUI. Use `Host.start` and, at the end, `stop` (or a `with` block).

    Args:
        process: the server's process.
        base: its base directory (`input`, `output`, `models`, `user` lie in it).
        port: its port on the loopback interface.
        log_file: where its standard output and error go.
    """

    def __init__(self, process: subprocess.Popen, base: Path, port: int, log_file: Path) -> None:
        self.process = process
        self.base = base
        self.address = f"127.0.0.1:{port}"
        self.log_file = log_file
        self.client_id = uuid.uuid4().hex

    @classmethod
    def start(
        cls,
        comfyui: Path,
        python: Path,
        pack: Path,
        base: Path,
        *,
        name: str = "pack-under.test",
        extra_args: tuple[str, ...] = (),
        timeout: float = 300.0,
    ) -> "Host":
        """Start ComfyUI on the CPU and wait until it answers.

        Args:
            comfyui: a ComfyUI checkout.
            python: the interpreter of its environment.
            pack: the node pack to link in.
            base: an empty directory to hold everything the host writes.
            name: under which the pack is linked in; the page cuts it at a dot.
            extra_args: more arguments for `main.py`.
            timeout: seconds to wait for the first answer.

        Raises:
            HostError: it exits or stays silent; the message ends with its log.
        """
        (base / "custom_nodes").mkdir(parents=True)
        (base / "user").mkdir()
        (base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
        port = _free_port()
        command = [
            *(str(python), "main.py", "--cpu", "--port", str(port)),
            *("--base-directory", str(base), "--user-directory", str(base / "user")),
            *("--database-url", "sqlite:///:memory:"),
            *("--disable-auto-launch", "--disable-api-nodes", "--preview-method", "latent2rgb"),
            *extra_args,
        ]
        log_file = base / "host.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT)
        host = cls(process, base, port, log_file)
        deadline = time.monotonic() + timeout
        while not host._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                host.stop()
                raise HostError(f"ComfyUI did not start; its log ends with:\n{host.log[-4000:]}")
            time.sleep(0.25)
        return host

    @property
    def log(self) -> str:
        """Everything the host has written so far."""
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        """End the server; harmless when it has already ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def object_info(self, node_id: str = "") -> dict[str, Any]:
        """The host's description of one node type, or of all."""
        return json.loads(self._get(f"/object_info/{node_id}" if node_id else "/object_info"))

    def get(self, path: str) -> bytes:
        """The body of a GET request, such as a help page of the pack."""
        return self._get(path)

    def interrupt(self) -> None:
        """Cancel the run in progress, as the page's cancel button does."""
        self._post("/interrupt", {})

    def image(self, reference: dict[str, str]) -> np.ndarray:
        """The pixels of a picture named in a node's `ui` output, (H, W, C) of 8 bit."""
        query = urllib.parse.urlencode(reference)
        with Image.open(io.BytesIO(self._get(f"/view?{query}"))) as image:
            return np.asarray(image)

    def images(self, run: Run, node_id: str) -> list[np.ndarray]:
        """All pictures that an output node of `run` has saved or previewed."""
        return [self.image(reference) for reference in run.outputs[node_id]["images"]]

    def run(
        self,
        prompt: Prompt,
        *,
        on_progress: Callable[[str, int, int], None] | None = None,
        timeout: float = 300.0,
    ) -> Run:
        """Queue a prompt in the API's form and follow it to its end.

        Args:
            prompt: the nodes by id.
            on_progress: called with (node id, value, maximum) at every progress event.
            timeout: the longest silence of the host, in seconds.

        Raises:
            HostError: the prompt does not validate; the message is the host's own.
        """
        connection = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={self.client_id}", timeout=timeout
        )
        try:
            connection.send(json.dumps(FEATURES))
            reply = self._post("/prompt", {"prompt": prompt, "client_id": self.client_id})
            return self._follow(connection, reply["prompt_id"], on_progress)
        finally:
            connection.close()

    def _follow(
        self,
        connection: websocket.WebSocket,
        prompt_id: str,
        on_progress: Callable[[str, int, int], None] | None,
    ) -> Run:
        run = Run()
        while True:
            message = connection.recv()
            if isinstance(message, bytes):
                event, number = struct.unpack(">II", message[:8])
                if event == PREVIEW_OF_A_NODE:
                    picture, about = message[8 + number :], json.loads(message[8 : 8 + number])
                    run.previews.append(Image.open(io.BytesIO(picture)).convert("RGB"))
                    run.preview_nodes.append(about["display_node_id"])
                elif event == TEXT:  # here the second number is the length of the node's id
                    text = message[8 + number :].decode()
                    run.texts.append((message[8 : 8 + number].decode(), text))
                continue
            event = json.loads(message)
            data = event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            match event["type"]:
                case "executing" if data["node"] is not None:
                    run.executed.append(data["node"])
                case "executed":
                    run.outputs[data["display_node"]] = data["output"]
                case "progress":
                    run.progress.append((data["node"], data["value"], data["max"]))
                    if on_progress is not None:
                        on_progress(*run.progress[-1])
                case "execution_success":
                    return run
                case "execution_error":
                    run.error = data
                    return run
                case "execution_interrupted":
                    run.interrupted = True
                    return run

    def _answers(self) -> bool:
        try:
            self._get("/system_stats")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as response:
            return response.read()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                reply = response.read()
        except urllib.error.HTTPError as error:
            raise HostError(error.read().decode(errors="replace")) from error
        return json.loads(reply) if reply else {}


def find_host() -> tuple[Path, Path] | None:
    """The ComfyUI checkout to test against and its interpreter, or None.

    `COMFYUI_PATH` names the checkout (else `~/comfy/ComfyUI`), `COMFYUI_PYTHON` the interpreter
    (else `.venv/bin/python` in it).
    """
    comfyui = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    python = Path(os.environ.get("COMFYUI_PYTHON", comfyui / ".venv" / "bin" / "python"))
    found = (comfyui / "main.py").is_file() and python.expanduser().is_file()
    return (comfyui, python.expanduser()) if found else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ran(host: Host, prompt: Prompt) -> Run:
    """A run that must not fail."""
    run = host.run(prompt)
    assert run.error is None, run.error_text
    return run


def failure(host: Host, prompt: Prompt) -> str:
    """The error of a prompt, whether it is refused or fails in a node."""
    try:
        return host.run(prompt).error_text
    except HostError as refused:
        return str(refused)
