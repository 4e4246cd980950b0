"""Where the browser is that opens ComfyUI's page, and how a script drives it."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_MODULES = Path(__file__).resolve().parents[2] / ".venv/browser/node_modules"


@dataclass(frozen=True)
class Browser:
    """A chromium, and the folder of npm's modules that holds playwright-core."""

    chromium: str
    modules: Path

    def drive(self, script: Path, *arguments: str, timeout: float) -> str:
        """What a script for node printed.

        Args:
            script: a module that finds playwright-core through `NODE_PATH`.
            arguments: passed on to it.
            timeout: seconds until it is killed.

        Raises:
            RuntimeError: it failed; the message is what it wrote on standard error.
        """
        done = subprocess.run(
            ["node", str(script), *arguments],
            env={**os.environ, "NODE_PATH": str(self.modules)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout


def find_browser() -> Browser | str:
    """The system's chromium with `make browser`'s playwright-core; else how to get what lacks."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or shutil.which("node") is None:
        return "no browser: install chromium and node, then `make browser`"
    modules = Path(os.environ.get("NODE_PATH", _MODULES))
    if not (modules / "playwright-core").is_dir():
        return "no playwright-core: `make browser` installs it"
    return Browser(chromium, modules)
