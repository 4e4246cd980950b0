"""Packages of pictures: found, downloaded by their own clients, unpacked once and safely."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from training.demo.packages import folder_name, unpack_packages

BOX = "npm:@toys/box@1.2.0"


def pack(path: Path, files: dict[str, bytes], link: str = "") -> None:
    """A .tgz such as `npm pack` writes."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("package/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("package", "folder"),
    [
        ("toys", "toys"),
        (BOX, "toys-box-1.2.0"),
        ("npm:toy.box@2.0.0-rc.1", "toy.box-2.0.0-rc.1"),
    ],
)
def test_folder_names(package: str, folder: str) -> None:
    assert folder_name(package) == folder


@pytest.mark.parametrize("package", ["npm:box", "npm:@toys/box", "npm:../box@1.0.0", "npm:-x@^1"])
def test_an_npm_package_has_a_version(package: str) -> None:
    with pytest.raises(ValueError, match=r"names no npm package; write it as npm:name@1\.2\.3"):
        folder_name(package)


def test_npm_packages_are_unpacked_once_beside_others(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "unpacked/toys").mkdir(parents=True)
    archive = tmp_path / "toys-box-1.2.0.tgz"
    pack(archive, {"package/package.json": b"{}", "package/assets/a.webp": b"a"})
    root = unpack_packages(["toys", BOX], cache=cache, debs=tmp_path)
    assert (root / "toys-box-1.2.0/assets/a.webp").read_bytes() == b"a"
    assert sorted(path.name for path in root.iterdir()) == ["toys", "toys-box-1.2.0"]
    archive.write_bytes(b"broken")  # a second call does not read it
    assert unpack_packages([BOX], cache=cache, debs=tmp_path) == root


def test_npm_packages_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, bin_ = tmp_path / "made.tgz", tmp_path / "bin"
    pack(made, {"package/a": b"a"})
    bin_.mkdir()
    program(bin_, "npm", f'echo "$@" > log; /bin/cp {made} toys-box-1.2.0.tgz')
    monkeypatch.setenv("PATH", str(bin_))
    cache = tmp_path / "cache"
    root = unpack_packages([BOX], cache=cache)
    assert (root / "toys-box-1.2.0/a").read_bytes() == b"a"
    assert (cache / "debs/log").read_text() == "pack --ignore-scripts @toys/box@1.2.0\n"


@pytest.mark.parametrize(
    ("files", "link"),
    [
        ({"package/../../../evil": b""}, ""),
        ({"package/a": b""}, "../../../evil"),
        ({"package/a": b"", "other/b": b""}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_a_harmful_or_damaged_npm_package_is_refused(
    files: dict[str, bytes] | None, link: str, tmp_path: Path
) -> None:
    archive, cache = tmp_path / "debs/toys-box-1.2.0.tgz", tmp_path / "cache"
    archive.parent.mkdir()
    if files is None:
        archive.write_bytes(b"text")
    else:
        pack(archive, files, link)
    with pytest.raises(ValueError, match=r"cannot unpack .*box-1\.2\.0\.tgz .*; download it again"):
        unpack_packages([BOX], cache=cache, debs=archive.parent)
    assert not list(tmp_path.rglob("evil")) and not (cache / "unpacked/toys-box-1.2.0").exists()


def test_a_missing_npm_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no toys-box-1\.2\.0\.tgz in .*npm pack @toys/box@1\.2\.0"
    ):
        unpack_packages([BOX], cache=tmp_path / "cache", debs=tmp_path)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("toys", r"apt-get is not installed; download the \.deb.*--debs"),
        (BOX, r"npm is not installed; run `npm pack @toys/box@1\.2\.0` elsewhere.*--debs"),
    ],
)
def test_without_the_client_the_error_says_what_to_do(
    package: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        unpack_packages([package], cache=tmp_path / "cache")


def test_a_missing_deb_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no toys_\*\.deb.*apt-get download toys"):
        unpack_packages(["toys"], cache=tmp_path / "cache", debs=tmp_path)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_debs_are_unpacked_once(tmp_path: Path) -> None:
    tree, debs, cache = tmp_path / "tree", tmp_path / "debs", tmp_path / "cache"
    (tree / "DEBIAN").mkdir(parents=True)
    debs.mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: toys\nVersion: 1\nArchitecture: all\nMaintainer: n <n@n>\nDescription: t\n"
    )
    (tree / "toy.txt").write_text("bear")
    deb = debs / "toys_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", "-Zgzip", tree, deb], check=True, capture_output=True)
    root = unpack_packages(["toys"], cache=cache, debs=debs)
    assert (root / "toys/toy.txt").read_text() == "bear"
    deb.write_bytes(b"broken")  # a second call does not read it
    assert unpack_packages(["toys"], cache=cache, debs=debs) == root
    shutil.rmtree(root)
    with pytest.raises(ValueError, match=r"dpkg-deb -x.*failed"):
        unpack_packages(["toys"], cache=cache, debs=debs)
    assert not (root / "toys").exists()
