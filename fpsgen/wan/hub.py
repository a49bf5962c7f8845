"""Fetching checkpoints from the Hugging Face hub, and where they lie on this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from fpsgen import assets
from fpsgen.errors import DownloadError, ModelError, UsageError
from fpsgen.wan import layout, load
from fpsgen.wan.layout import Checkpoint, Format

# The original repositories first: their text encoder is bfloat16, half of what the Diffusers ones hold.
REPOSITORIES: dict[str, dict[Format, str]] = {
    "1.3b": {"original": "Wan-AI/Wan2.1-T2V-1.3B", "diffusers": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "14b": {"original": "Wan-AI/Wan2.1-T2V-14B", "diffusers": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
}
# By parameter count: transformer and VAE in float32, text encoder in bfloat16.
DOWNLOAD_GB = {"1.3b": 18, "14b": 69}
# What a repository holds beside these (pictures, examples, other precisions) is not fetched.
NEEDED = (
    "config.json",
    "model_index.json",
    "scheduler/*.json",
    layout.TEXT_ENCODER_FILE,
    layout.VAE_FILE,
    *(f"{part}/config.json" for part in layout.STEMS),
    *(
        f"{folder}/{name}"
        for folder in (layout.TOKENIZER_FOLDER.as_posix(), "tokenizer")
        for name in layout.TOKENIZER_FILES
    ),
    *(
        f"{stem}{ending}"
        for stem in (layout.STEMS["transformer"], *(f"{part}/{stem}" for part, stem in layout.STEMS.items()))
        for ending in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")
    ),
)
ID = re.compile(r"[\w.-]+/[\w.-]+")


def pull_hint(key: str) -> str:
    return f"fpsgen models pull {key} (about {DOWNLOAD_GB[key]} GB)"


def on_disk(key: str) -> Path | None:
    """The downloaded folder of a known model in either format, or None where it is absent or not whole."""
    folders = (snapshot(repository) for repository in REPOSITORIES[key].values())
    return next((folder for folder in folders if whole(folder)), None)


def snapshot(repository: str) -> Path | None:
    """The downloaded folder of a hub id, which may lack files or hold damaged ones; None where there is none."""
    try:
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=list(NEEDED)))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def whole(folder: Path | None) -> Checkpoint | None:
    """The checkpoint in a folder, if all its files are there, as far as headers tell."""
    try:
        return layout.recognise(folder) if folder else None
    except ModelError:
        return None


def downloaded() -> list[str]:
    """Hub ids other than the known ones of which the cache holds a Wan2.1 checkpoint."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    cached = [repository.repo_id for repository in repositories if repository.repo_type == "model"]
    known = {repository for formats in REPOSITORIES.values() for repository in formats.values()}
    return sorted(name for name in cached if name not in known and whole(snapshot(name)))


@dataclass(frozen=True)
class Download:
    """What `pull` fetches: the files of a repository that are needed, those to be fetched, both with their bytes."""

    repository: str
    files: dict[str, int]
    absent: dict[str, int]
    force: bool = False

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def absent_bytes(self) -> int:
        return sum(self.absent.values())


def repository_of(name: str, form: Format) -> str:
    """The hub id of a known name, or `name` itself where it is one; UsageError otherwise."""
    if name.lower() in REPOSITORIES:
        return REPOSITORIES[name.lower()][form]
    if name.lower() == "pocket":
        raise UsageError("the pocket model comes with fpsgen", hint="fpsgen generate --model pocket")
    if not ID.fullmatch(name):
        raise UsageError(f"{name} is no model to fetch", hint=f"give one of {', '.join(REPOSITORIES)} or a hub id")
    return name


def plan(repository: str, force: bool = False) -> Download:
    """Ask the hub what `pull` would fetch; UsageError where it has nothing of Wan2.1's under that name.

    force: files that are here already as well. Offline, a model that is whole on disk is a download of nothing.
    """
    if constants.HF_HUB_OFFLINE and (folder := snapshot(repository)) and whole(folder):
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        return Download(repository, files, {})
    with _explained(repository, "check the network; a model fetched elsewhere can be given as --model FOLDER"):
        try:
            found = snapshot_download(repository, allow_patterns=list(NEEDED), dry_run=True)
        except DryRunError as failure:  # says nothing of its own
            raise failure.__cause__ or failure from None
    sizes_of = {info.filename: info.file_size or 0 for info in found}
    if not any(name.endswith((".safetensors", ".pth")) for name in sizes_of):
        hint = "fpsgen models lists names; for a transformer in one file, fetch it and give --model FILE.safetensors"
        raise UsageError(f"{repository} holds no Wan2.1 checkpoint", hint)
    absent = {info.filename: info.file_size or 0 for info in found if info.will_download or force}
    return Download(repository, sizes_of, absent, force)


def pull(download: Download) -> Path:
    """Fetch what is absent, going on where an earlier attempt ended. Draws huggingface-hub's own progress bars.

    Raises ModelError before the weights where the configuration is another model's, and after them where they are
    damaged.
    """
    free = shutil.disk_usage(assets.existing(Path(constants.HF_HUB_CACHE))).free
    if download.absent_bytes > free:
        raise UsageError(
            f"{download.repository} needs {download.absent_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left",
            hint="set HF_HOME to a folder on a larger disk",
        )
    kept = f"what arrived is kept: fpsgen models pull {download.repository} goes on from there"
    with _explained(download.repository, kept):
        small = [pattern for pattern in NEEDED if pattern.split("/")[-1] in ("config.json", "model_index.json")]
        folder = Path(snapshot_download(download.repository, allow_patterns=small))
        try:
            layout.refuse_other_models(folder)
        except ModelError as error:
            raise ModelError(f"{download.repository} cannot be used: {error}", hint=error.hint) from None
        needed = list(NEEDED)
        folder = Path(snapshot_download(download.repository, allow_patterns=needed, force_download=download.force))
    try:
        load.check(layout.recognise(folder))
    except ModelError as error:
        hint = f"fpsgen models pull {download.repository} --force"
        raise ModelError(f"{download.repository} arrived damaged: {error}", hint) from None
    return folder


@contextmanager
def _explained(repository: str, hint: str) -> Iterator[None]:
    """Let failures of the hub and of the way to it end in a sentence; `hint` for those that may pass."""
    try:
        yield
    except ModelError:
        raise
    except HFValidationError as fault:
        raise UsageError(f"{repository} is no hub id: {fault}") from None
    except GatedRepoError:
        raise UsageError(f"{repository} asks for a login", hint="hf auth login") from None
    except RepositoryNotFoundError:
        raise UsageError(f"the hub has no {repository}", hint="see `fpsgen models` for names") from None
    except HfHubHTTPError as fault:
        status = fault.response.status_code if fault.response is not None else "an error"
        if status in (401, 403):
            raise UsageError(f"the hub refuses {repository} to you", hint="hf auth login") from None
        raise DownloadError(f"the hub answered {status} for {repository}", f"try later; {hint}") from None
    except (KeyError, TypeError, ValueError):  # a proxy's login page, say
        raise DownloadError(f"what answers at {constants.ENDPOINT} is no hub", hint="check HF_ENDPOINT") from None
    except Exception as fault:
        if constants.HF_HUB_OFFLINE:
            raise UsageError("HF_HUB_OFFLINE is set, so nothing is fetched", hint="unset HF_HUB_OFFLINE") from None
        # The library's HTTP client is its own affair, and has changed between its releases.
        if not (isinstance(fault, OSError) or type(fault).__module__.startswith("httpx")):
            raise
        if isinstance(fault, (PermissionError, NotADirectoryError, FileExistsError)):
            raise UsageError(f"{constants.HF_HUB_CACHE} cannot be written", "set HF_HOME to another folder") from None
        if "Connect" in type(fault).__name__ or isinstance(fault, (LocalEntryNotFoundError, ConnectionError)):
            raise DownloadError(f"the hub at {constants.ENDPOINT} cannot be reached", hint=hint) from None
        raise DownloadError(f"fetching {repository} failed: {fault or type(fault).__name__}", hint=hint) from None
