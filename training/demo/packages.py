"""Packages that hold pictures: downloaded by their own client, then unpacked once.

A Debian package is named as apt names it. An npm package is named with its version, for example
`npm:@lobehub/fluent-emoji-3d@1.1.0`. Nothing of a package is run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tqdm import tqdm

from pbe_model.untrusted import first_line

_NPM = re.compile(r"npm:(?P<name>(?:@[\w.-]+/)?[\w.-]+)@(?P<version>\d[\w.+-]*)", re.ASCII)


def folder_name(package: str) -> str:
    """The folder of an unpacked package; for npm also the stem of the file of `npm pack`.

    Raises:
        ValueError: an npm package without a version, or not the name of one.
    """
    if not package.startswith("npm:"):
        return package
    match = _NPM.fullmatch(package)
    if match is None:
        raise ValueError(f"{package!r} names no npm package; write it as npm:name@1.2.3.")
    return f"{match['name'].removeprefix('@').replace('/', '-')}-{match['version']}"


def unpack_packages(packages: list[str], *, cache: Path, debs: Path | None = None) -> Path:
    """Unpack packages, downloading them first unless `debs` holds them.

    Args:
        packages: names of Debian packages, and of npm packages as `npm:name@version`.
        cache: where they are downloaded and unpacked.
        debs: folder of already downloaded .deb and .tgz files.

    Returns:
        The folder that holds one unpacked tree a package, each under its `folder_name`.

    Raises:
        ValueError: a tool or a package is missing, or a package is damaged; the message says what
            to do.
    """
    root = cache / "unpacked"
    missing = [package for package in packages if not (root / folder_name(package)).is_dir()]
    if missing and debs is None:
        debs = cache / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        _download([package for package in missing if _archive(package, debs) is None], debs)
    for package in tqdm(missing, desc="unpack", disable=not missing):
        assert debs is not None
        archive = _archive(package, debs)
        if archive is None:
            raise ValueError(_absence(package, debs))
        target = root / folder_name(package)
        temporary = root / f"{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if archive.suffix == ".tgz":
            _unpack_npm(archive, temporary)
            (temporary / "package").rename(target)
            temporary.rmdir()
        else:
            remedy = f"install dpkg, or unpack the package by hand into {target}"
            _run(["dpkg-deb", "-x", str(archive.resolve()), str(temporary)], remedy=remedy)
            temporary.rename(target)
    return root


def _archive(package: str, folder: Path) -> Path | None:
    """The package's file in a folder: the newest .deb, or the .tgz of the very version."""
    if package.startswith("npm:"):
        path = folder / f"{folder_name(package)}.tgz"
        return path if path.is_file() else None
    return max(folder.glob(f"{package}_*.deb"), default=None)


def _absence(package: str, folder: Path) -> str:
    if package.startswith("npm:"):
        name, command = f"{folder_name(package)}.tgz", f"npm pack {package.removeprefix('npm:')}"
        return f"There is no {name} in {folder}; put it there, for example with `{command}`."
    return (
        f"There is no {package}_*.deb in {folder}; put it there, for example with "
        f"`apt-get download {package}` on a Debian machine."
    )


def _download(packages: list[str], folder: Path) -> None:
    debian = [package for package in packages if not package.startswith("npm:")]
    npm = [package.removeprefix("npm:") for package in packages if package.startswith("npm:")]
    if debian:
        remedy = "download the .deb files elsewhere and give their folder with --debs"
        _run(["apt-get", "download", *debian], cwd=folder, remedy=remedy)
    if npm:
        remedy = f"run `npm pack {' '.join(npm)}` elsewhere and give the folder with --debs"
        _run(["npm", "pack", "--ignore-scripts", *npm], cwd=folder, remedy=remedy)


def _unpack_npm(archive: Path, folder: Path) -> None:
    """Unpack what `npm pack` wrote; everything in it lies under `package/`."""
    if not hasattr(tarfile, "data_filter"):
        raise ValueError(
            "This Python cannot unpack archives safely; use Python 3.10.12, 3.11.4, 3.12 or newer."
        )
    try:
        with tarfile.open(archive, "r:gz") as file:
            file.extractall(folder, filter="data")
        if [path.name for path in folder.iterdir()] != ["package"]:
            raise ValueError("not everything in it is under package/")
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"cannot unpack {archive} ({first_line(error)}); download it again."
        ) from error


def _run(command: list[str], *, remedy: str, cwd: Path | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed; {remedy}.")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"`{' '.join(command)}` failed ({reason}); {remedy}.")
