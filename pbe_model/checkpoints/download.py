"""Fetching the published weights from the Hugging Face hub: on request, resumable, hash-checked.

The hub's list of files decides what is fetched. huggingface_hub lists the files and speaks HTTP;
writing to a file that outlives an interruption is done here, because `hf_hub_download` starts over
(since huggingface_hub 1.18, which no longer keeps partial files that can be found again).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..atomic import made_folder
from ..untrusted import first_line
from .diffusers_folder import STEMS
from .diffusers_layout import FOLDERS
from .save import convert

REPOSITORY = "Fantasy-Studio/Paint-by-Example"
"""Where the authors' weights are published."""

CONVERTED = "paint_by_example.safetensors"
UNFINISHED = ".download"
"""Suffix of the folder that holds the files until all of them are there."""

_HUB = "https://huggingface.co"
_OFFICIAL = "model.ckpt"
# Fetched beside the weights, so that --as-published makes a folder that diffusers loads.
_SMALL = re.compile(
    r"model_index\.json|(scheduler|feature_extractor)/[\w-]+\.json"
    rf"|({'|'.join(FOLDERS)})/config\.json"
)
_TIMEOUT = 30  # seconds to wait for the list of files
_SLACK = 100_000_000  # bytes that should stay free on the disk


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as the hub describes it."""

    path: str
    """Path in the repository."""
    size: int
    """Number of bytes."""
    digest: str
    """SHA-256; for files that git itself holds, the SHA-1 of git's blob."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """The files that make up one kind of weights, at one commit."""

    repo: str
    commit: str
    endpoint: str
    what: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Total number of bytes."""
        return sum(file.size for file in self.files)


def comfyui_folder() -> Path:
    """ComfyUI's folder for our checkpoints, `models/paint_by_example`; it may not exist yet.

    The host is the one that `$COMFYUI_PATH` names, else the one whose `custom_nodes` this package
    lies in.

    Raises:
        ValueError: There is none.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        models = Path(named) / "models"
        if not models.is_dir():
            raise ValueError(
                f"COMFYUI_PATH={named} has no folder models; correct it, or say where with --out"
            )
        return models / "paint_by_example"
    # Not resolved: a pack may be linked into the host.
    pack = Path(__file__).absolute().parents[2]
    models = pack.parent.parent / "models"
    if pack.parent.name != "custom_nodes" or not models.is_dir():
        raise ValueError(
            "no ComfyUI found to put the weights into; say where with --out, or set COMFYUI_PATH"
        )
    return models / "paint_by_example"


def look_up(
    what: str = "diffusers",
    *,
    repo: str = REPOSITORY,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Release:
    """Ask the hub which files there are, and choose among them.

    Args:
        what: `"diffusers"` for the parts of that layout (safetensors rather than pickles, no safety
            checker), `"official"` for the authors' `model.ckpt`, or a checkpoint's path in it.
        repo: Model repository, `owner/name`.
        revision: Branch, tag or commit; the main branch by default.
        endpoint: Address of the hub; `$HF_ENDPOINT`, or huggingface.co.

    Raises:
        ValueError: No huggingface_hub, no such repository or revision, no access, no connection,
            or no weights of this kind.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ValueError(
            "pbe download needs huggingface_hub: pip install huggingface_hub"
        ) from error
    # The library reads the variable once, when it is first imported.
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    with _sentences(repo, revision, endpoint):
        info = HfApi(endpoint=endpoint).model_info(
            repo, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
    listed = {file.rfilename: file for file in info.siblings or []}
    files = tuple(_described(listed[path], endpoint) for path in _chosen(list(listed), what, repo))
    return Release(
        repo=repo, commit=info.sha or revision or "main", endpoint=endpoint, what=what, files=files
    )


def _chosen(paths: list[str], what: str, repo: str) -> list[str]:
    """The paths that make up a kind of weights."""
    if what != "diffusers":
        path = _OFFICIAL if what == "official" else what
        if path in paths:
            return [path]
        lacks = [path]
    else:
        weights = {part: _weights(paths, part) for part in FOLDERS}
        lacks = [f"{part}/config.json" for part in FOLDERS if f"{part}/config.json" not in paths]
        lacks += [f"weights in {part}/" for part, found in weights.items() if not found]
        if not lacks:
            small = [path for path in paths if _SMALL.fullmatch(path)]
            return small + [path for found in weights.values() for path in found]
    there = ", ".join(sorted(paths)[:20]) + (", ..." if len(paths) > 20 else "")
    raise ValueError(
        f"{repo} has no {' and no '.join(lacks)}; choose with --what among what is there: "
        f"{there or 'nothing'}"
    )


def _weights(paths: list[str], part: str) -> list[str]:
    """The files that the reader of folders would take, in its order of preference."""
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            whole = f"{part}/{stem}{suffix}"
            if whole in paths:
                return [whole]
            if f"{whole}.index.json" in paths:
                shard = re.compile(rf"{part}/{stem}-\d+-of-\d+\{suffix}")
                return [f"{whole}.index.json", *filter(shard.fullmatch, paths)]
    return []


def _described(file: Any, endpoint: str) -> RemoteFile:
    digest = file.lfs.sha256 if file.lfs else file.blob_id
    if file.size is None or digest is None:
        raise ValueError(
            f"the hub at {endpoint} gives no size or hash of {file.rfilename}, so the file could "
            "not be verified; use another HF_ENDPOINT"
        )
    return RemoteFile(path=file.rfilename, size=file.size, digest=digest)


def download(release: Release, out: Path, *, dtype: torch.dtype | None = torch.float16) -> Path:
    """Fetch what is not there yet, check it, and make one safetensors file of it.

    Until it is complete it is in a folder of its own in `out`, whose name ends in `UNFINISHED`;
    called again after an interruption, the transfer goes on where it stopped.

    Args:
        release: From `look_up`.
        out: Folder; made if its parent exists.
        dtype: Type of the weights in the file; `None` keeps the files as they are published.

    Returns:
        `CONVERTED` in `out`; as published, a folder named like the repository, or the one file.

    Raises:
        ValueError: The result already exists, no space, no connection, or a file differs from what
            the hub promised.
    """
    name = PurePosixPath(release.repo).name
    scratch = out / f"{name}.{_plain(release.what)}{UNFINISHED}"
    is_folder = release.what == "diffusers"
    single = release.files[0].path
    published = name if is_folder else PurePosixPath(single).name
    result = out / (published if dtype is None else CONVERTED)
    if result.exists():
        raise ValueError(f"{result} already exists; remove it, or choose another --out")
    with _sentences(release.repo, release.commit, release.endpoint):
        if not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent}; create it, or choose another --out")
        with made_folder(scratch):
            _remove_strangers(scratch, release)
            _check_space(scratch, release, dtype)
            for file in release.files:
                _fetch(file, scratch, release)
        fetched = scratch if is_folder else scratch / single
        if dtype is None:
            os.replace(fetched, result)
    if dtype is not None:
        convert(fetched, result, layout="safetensors", dtype=dtype)
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def _plain(what: str) -> str:
    return re.sub(r"[^\w.-]", "-", what)


def _part(file: RemoteFile, folder: Path) -> Path:
    """Where a file grows; the name depends on the content, so another is never continued."""
    return folder / f"{file.path}.{file.digest[:16]}.part"


def _remove_strangers(folder: Path, release: Release) -> None:
    """Delete files of an earlier attempt that the repository no longer has, or has changed."""
    known = {folder / file.path for file in release.files}
    known |= {_part(file, folder) for file in release.files}
    for path in folder.rglob("*"):
        if path.is_file() and path not in known:
            path.unlink()


def _check_space(folder: Path, release: Release, dtype: torch.dtype | None) -> None:
    """Raise `ValueError` unless the rest of the files and the converted one fit on the disk."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    # Published files are float32, some with optimizer states: the result is at most this large.
    converted = release.size * dtype.itemsize // 4 if dtype is not None else 0
    needed = max(release.size - there, 0) + converted + _SLACK
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder.parent} has {free / 1e9:,.1f} GB free and {needed / 1e9:,.1f} GB are needed; "
            "make room, or choose another --out"
        )


def _fetch(file: RemoteFile, folder: Path, release: Release) -> None:
    """Complete one file; it gets its own name only once it has been checked."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target, part = folder / file.path, _part(file, folder)
    if target.is_file():
        if _digest(target, file) == file.digest:
            return
        target.unlink()
    part.parent.mkdir(parents=True, exist_ok=True)
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    with open(part, "ab") as growing:
        http_get(
            hf_hub_url(release.repo, file.path, revision=release.commit, endpoint=release.endpoint),
            growing,
            resume_size=growing.tell(),
            # A compressed response could not be resumed in the middle.
            headers=build_hf_headers(library_name="pbe") | {"accept-encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.path,
        )
    found = _digest(part, file)
    if found != file.digest:
        part.unlink()
        raise ValueError(
            f"{file.path} arrived damaged (hash {found[:12]} instead of {file.digest[:12]}) and "
            "was removed; run the same command again"
        )
    os.replace(part, target)


def _digest(path: Path, file: RemoteFile) -> str:
    """Hash of a local file, by the method of the hub's own."""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _sentences(repo: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into `ValueError`s with a remedy."""
    from huggingface_hub import errors

    login = "log in with `hf auth login` or set HF_TOKEN"
    again = "run the same command again: it goes on where it stopped"
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set, so the hub is not contacted; unset it") from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{repo} is gated; accept its terms at {endpoint}/{repo}, then {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{repo} has no revision {revision or 'main'}; correct --revision"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            raise ValueError(
                f"{endpoint} has no repository {repo} that you may read (status {status}); correct "
                f"--repo, or if it is private, {login}"
            ) from error
        raise ValueError(
            f"{endpoint} answered with status {status}; wait a little, then {again}"
        ) from error
    except errors.HTTPError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise _unreachable(endpoint, error, again) from error
    except OSError as error:
        if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
            raise _unreachable(endpoint, error, again) from error
        raise ValueError(
            f"cannot write {error.filename or 'the download'}: {error.strerror}; check the "
            f"permissions and the disk space, then {again}"
        ) from error


def _unreachable(endpoint: str, error: Exception, again: str) -> ValueError:
    reason = first_line(error)
    return ValueError(
        f"the connection to {endpoint} failed ({reason}); check the network and HF_ENDPOINT, "
        f"then {again}"
    )
