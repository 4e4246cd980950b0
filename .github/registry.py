"""What the Comfy Registry needs of this pack, checked before it is published.

    python .github/registry.py metadata     is pyproject.toml filled in?
    python .github/registry.py pack ZIP     is what it should in the archive of `comfy node pack`?

Standard library of Python 3.11 only. What is wrong is one sentence on standard error, exit code 2.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "OWNER"
MAX_MEGABYTES = 40
ICONS = (".svg", ".png", ".jpg", ".gif")


def check_metadata(root: Path = ROOT) -> None:
    """Every entry that the registry asks for, and no placeholder left.

    Raises:
        ValueError: an entry is empty or still the placeholder, or the icon is no file here.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = settings["project"], settings.get("tool", {}).get("comfy", {})
    repository = project.get("urls", {}).get("Repository", "")
    entries = {
        "[project] name": project.get("name", ""),
        "[project] version": project.get("version", ""),
        "[project] description": project.get("description", ""),
        "[project.urls] Repository": repository,
        "[tool.comfy] PublisherId": comfy.get("PublisherId", ""),
        "[tool.comfy] DisplayName": comfy.get("DisplayName", ""),
        "[tool.comfy] Icon": comfy.get("Icon", ""),
    }
    for name, value in entries.items():
        if not value.strip():
            raise ValueError(f"{name} in pyproject.toml is empty; the registry needs it")
        if PLACEHOLDER in value:
            raise ValueError(
                f"{name} in pyproject.toml still says {value!r}; put the name of the repository's "
                f"owner in the place of {PLACEHOLDER}"
            )
    icon = comfy["Icon"]
    file = icon.rpartition("/main/")[2]
    if not icon.startswith("https://") or Path(file).suffix not in ICONS:
        raise ValueError(f"[tool.comfy] Icon must be the https address of an image, not {icon!r}")
    if not (root / file).is_file():
        raise ValueError(f"[tool.comfy] Icon ends in {file!r}, which is no file of the repository")


def packed_files(root: Path = ROOT) -> list[str]:
    """The tracked files that `.comfyignore` lets into the pack, as git understands its rules."""

    def listed(*options: str) -> set[str]:
        command = ["git", "-C", str(root), "ls-files", "-z", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return set(done.stdout.split("\0")) - {""}

    left_out = listed("--cached", "--ignored", f"--exclude-from={root / '.comfyignore'}")
    return sorted(listed() - left_out)


def check_pack(archive: Path, root: Path = ROOT) -> str:
    """Compare an archive with what it should hold.

    Returns:
        Its size, in words.

    Raises:
        ValueError: files are missing or too many, or it is too large.
    """
    with zipfile.ZipFile(archive) as opened:
        held = set(opened.namelist())
    wanted = set(packed_files(root))
    if held != wanted:
        raise ValueError(
            f"{archive.name} lacks {sorted(wanted - held)} and should not hold "
            f"{sorted(held - wanted)}; see .comfyignore"
        )
    megabytes = archive.stat().st_size / 1e6
    if megabytes > MAX_MEGABYTES:
        raise ValueError(f"{archive.name} has {megabytes:.0f} MB; {MAX_MEGABYTES} is the most")
    return f"{archive.name}: {len(held)} files, {megabytes:.1f} MB"


def main(arguments: list[str]) -> int:
    """Run the check that the arguments name; the process's exit code."""
    try:
        match arguments:
            case ["metadata"]:
                check_metadata()
                print("pyproject.toml is ready for the registry")
            case ["pack", archive]:
                print(check_pack(Path(archive)))
            case _:
                raise ValueError("say `metadata`, or `pack` and the archive")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
