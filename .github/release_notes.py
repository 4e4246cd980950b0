"""The text of a release, out of CHANGELOG.md.

    python .github/release_notes.py v1.2.3

Prints the version's section. The tag has to be the version in pyproject.toml, and the section must
be there.
Standard library of Python 3.11 only. What is wrong is one sentence on standard error, exit code 2.
"""

import re
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """The section of the changelog for a tag, without its heading.

    Raises:
        ValueError: the tag is not the package's version, or its section is missing or empty.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    if tag != f"v{version}":
        raise ValueError(f"the tag {tag} is not v{version}, the version in pyproject.toml")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    for section in re.split(r"(?m)^## ", changelog)[1:]:
        heading, _, text = section.partition("\n")
        if re.match(rf"\[?{re.escape(version)}\]?( |$)", heading):
            if not text.strip():
                raise ValueError(f"the section {version} of CHANGELOG.md is empty")
            return text.strip() + "\n"
    raise ValueError(
        f"CHANGELOG.md has no section {version}; put one below Unreleased, with the date"
    )


def main() -> int:
    if len(sys.argv) != 2:
        print("release_notes: give one tag, such as v1.2.3", file=sys.stderr)
        return 2
    try:
        print(release_notes(sys.argv[1]), end="")
    except ValueError as error:
        print(f"release_notes: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
