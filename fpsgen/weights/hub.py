"""Fetching checkpoints from the Hugging Face hub, and which of the known ones are on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from fpsgen import assets
from fpsgen.errors import DownloadError, ModelError, UsageError, option
from fpsgen.printable import printable, readable, typed
from fpsgen.weights import layout
from fpsgen.weights.cached import ID, NEEDED, STATES, Cached, look, repositories
from fpsgen.weights.layout import Format

# The original repositories first: they are the smaller ones.
REPOSITORIES: dict[str, dict[Format, str]] = {
    "1.3b": {"original": "Wan-AI/Wan2.1-T2V-1.3B", "diffusers": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"},
    "14b": {"original": "Wan-AI/Wan2.1-T2V-14B", "diffusers": "Wan-AI/Wan2.1-T2V-14B-Diffusers"},
}
# By parameter count: transformer and VAE in float32; text encoder in bfloat16, in Diffusers' format in float32.
DOWNLOAD_GB: dict[str, dict[Format, int]] = {
    "1.3b": {"original": 18, "diffusers": 29},
    "14b": {"original": 69, "diffusers": 80},
}


def known() -> Iterator[tuple[str, Format, Cached]]:
    """What the cache holds of the known models: name and format of each, and what there is."""
    for key, repositories_of in REPOSITORIES.items():
        for form, repository in repositories_of.items():
            yield key, form, look(repository)


def nearest(key: str) -> tuple[Format, Cached]:
    """The format of a known model that is whole or nearest to it; the original where nothing is here."""
    looked = {form: look(repository) for form, repository in REPOSITORIES[key].items()}
    form = min(looked, key=lambda form: (STATES.index(looked[form].state), looked[form].absent_bytes or 0))
    return form, looked[form]


def on_disk(key: str) -> Path | None:
    """The downloaded folder of a known model in either format, or None where it is absent or not whole."""
    cached = nearest(key)[1]
    return cached.folder if cached.state == "here" else None


def to_fetch(key: str) -> str:
    """How much is to be fetched of a known model, in words."""
    form, cached = nearest(key)
    if cached.absent_bytes is None:
        return f"about {DOWNLOAD_GB[key][form]} GB"
    return f"{readable(cached.absent_bytes)}; the rest is here"


def pull_hint(key: str) -> str:
    """The command that fetches a known model, or what is absent of it, and how much that is."""
    form = nearest(key)[0]
    name = key if form == "original" else REPOSITORIES[key][form]
    return f"fpsgen models pull {name} ({to_fetch(key)})"


def refusal(cached: Cached, name: str) -> ModelError:
    """The error for a model of which the cache holds something that is not whole, with what mends it."""
    size = f" ({readable(cached.absent_bytes)})" if cached.absent_bytes is not None else ""
    hint = f"fpsgen models pull {name} fetches what is absent{size}; with {option('force')}, everything again"
    told = "is incomplete in the hub's cache" if cached.lacking else "cannot be used"
    return ModelError(f"model {name} {told}: {cached.why}", hint=cached.hint or hint)


def downloaded() -> list[Cached]:
    """Wan2.1 checkpoints other than the known ones that the cache holds."""
    ours = {repository for formats in REPOSITORIES.values() for repository in formats.values()}
    return [cached for each in repositories() if each not in ours and (cached := look(each)).state == "here"]


@dataclass(frozen=True)
class Download:
    """What `pull` fetches: the files of a repository that are needed, those to be fetched, both with their bytes; the
    folder where offline all is here."""

    repository: str
    files: dict[str, int]
    absent: dict[str, int]
    force: bool = False
    folder: Path | None = None

    @property
    def absent_bytes(self) -> int:
        return sum(self.absent.values())


def repository_of(name: str, form: Format) -> str:
    """The hub id of a known name, or `name` itself where it is one; UsageError otherwise."""
    if name.lower() in REPOSITORIES:
        return REPOSITORIES[name.lower()][form]
    if name.lower() == "pocket":
        raise UsageError("the pocket model comes with fpsgen", hint=f"fpsgen generate {option('model', 'pocket')}")
    if not ID.fullmatch(name):
        raise UsageError(
            f"{typed(name)} is not a model to fetch",
            hint=f"give one of {', '.join(REPOSITORIES)} or a hub id",
        )
    return name


def plan(repository: str, force: bool = False) -> Download:
    """Ask the hub what `pull` would fetch; UsageError where it has nothing of Wan2.1's under that name.

    force: files that are here already as well. Offline, a model that is whole on disk is a download of nothing.
    """
    if constants.HF_HUB_OFFLINE and not force and (cached := look(repository)).state == "here" and cached.folder:
        here = [path for path in cached.folder.rglob("*") if path.is_file()]
        files = {path.relative_to(cached.folder).as_posix(): path.stat().st_size for path in here}
        return Download(repository, files, {}, folder=cached.folder)
    with _explained(repository, "check the network, or fetch the model elsewhere and name its folder as the model"):
        try:
            found = snapshot_download(repository, allow_patterns=NEEDED, dry_run=True)
        except DryRunError as failure:  # says nothing of its own
            raise failure.__cause__ or failure from None
    files = {info.filename: info.file_size or 0 for info in found}
    if not any(name.endswith((".safetensors", ".pth")) for name in files):
        hint = "fpsgen models lists names; of a transformer in one file, fetch that file and name it as the model"
        raise UsageError(f"{repository} holds no Wan2.1 checkpoint", hint)
    absent = {info.filename: info.file_size or 0 for info in found if info.will_download or force}
    return Download(repository, files, absent, force)


def pull(download: Download) -> Path:
    """Fetch what is absent, going on where an earlier attempt ended. Draws huggingface-hub's own progress bars.

    Raises ModelError before the weights where the configuration is another model's, and after them where they are
    damaged.
    """
    if download.folder:
        return download.folder
    repository, free = download.repository, shutil.disk_usage(assets.existing(Path(constants.HF_HUB_CACHE))).free
    if download.absent_bytes > free:
        raise UsageError(
            f"{repository} needs {readable(download.absent_bytes)}, the disk has {readable(free)} left",
            hint="set HF_HOME to a folder on a larger disk",
        )
    with _explained(repository, f"what arrived is kept: fpsgen models pull {repository} continues from there"):
        small = [pattern for pattern in NEEDED if pattern.split("/")[-1] in ("config.json", "model_index.json")]
        try:
            layout.refuse_other_models(Path(snapshot_download(repository, allow_patterns=small)))
        except ModelError as error:
            raise ModelError(f"{repository} cannot be used: {error}", hint=error.hint) from None
        folder = Path(snapshot_download(repository, allow_patterns=NEEDED, force_download=download.force))
    from fpsgen.weights import load  # here, for it imports torch

    try:
        load.check(layout.recognise(folder))
    except ModelError as error:
        hint = f"fpsgen models pull {repository} {option('force')}"
        raise ModelError(f"{repository} arrived damaged: {error}", hint) from None
    return folder


@contextmanager
def _explained(repository: str, hint: str) -> Iterator[None]:
    """Let failures of the hub and of the way to it end in a sentence; `hint` for those that may pass."""
    hooks = get_session().event_hooks["request"]
    if _limit_wait not in hooks:
        hooks.append(_limit_wait)
    try:
        yield
    except ModelError:
        raise
    except Exception as fault:
        raise _in_words(fault, repository, hint) from None


def _in_words(fault: Exception, repository: str, hint: str) -> Exception:
    """What to raise for a failure of the hub, the network, the disk or the library."""
    if isinstance(fault, HFValidationError):
        told = f"{printable(repository)} is not a hub id: {printable(fault)}"
        return UsageError(told, "a hub id is OWNER/NAME, such as Wan-AI/Wan2.1-T2V-1.3B")
    if isinstance(fault, RepositoryNotFoundError) and not isinstance(fault, GatedRepoError):
        return UsageError(f"the hub has no {repository}", "see `fpsgen models` for names")
    if isinstance(fault, HfHubHTTPError):
        status = fault.response.status_code if fault.response is not None else "an error"
        if isinstance(fault, GatedRepoError) or status in (401, 403):
            return UsageError(f"the hub does not let you have {repository} without a login", "hf auth login")
        return DownloadError(f"the hub answered {status} for {repository}", f"try later; {hint}")
    if isinstance(fault, (KeyError, TypeError, ValueError, RecursionError)):  # a proxy's login page, say
        return DownloadError(f"the server at {constants.ENDPOINT} is not a Hugging Face hub", "check HF_ENDPOINT")
    if constants.HF_HUB_OFFLINE:
        return UsageError("HF_HUB_OFFLINE is set, so nothing is fetched", "unset HF_HUB_OFFLINE")
    # The library's HTTP client is its own affair, and has changed between its releases.
    if not (isinstance(fault, OSError) or type(fault).__module__.startswith("httpx")):
        return fault
    if isinstance(fault, (PermissionError, NotADirectoryError, FileExistsError)):
        return UsageError(f"{printable(constants.HF_HUB_CACHE)} cannot be written", "set HF_HOME to another folder")
    absent = isinstance(fault, LocalEntryNotFoundError)
    if "Timeout" in type((absent and fault.__cause__) or fault).__name__:
        longer = f"HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set longer waits; {hint}"
        return DownloadError(f"the hub at {constants.ENDPOINT} did not answer in time", longer)
    if absent or "Connect" in type(fault).__name__ or isinstance(fault, ConnectionError):
        return DownloadError(f"the hub at {constants.ENDPOINT} cannot be reached", hint)
    return DownloadError(f"fetching {repository} failed: {printable(fault) or type(fault).__name__}", hint)


def _limit_wait(request: Any) -> None:
    """A hook of huggingface-hub's HTTP client, which waits for ever where a call of the library names no time."""
    waits = request.extensions.setdefault("timeout", {})
    for phase in ("connect", "read", "write", "pool"):
        if waits.get(phase) is None:
            waits[phase] = constants.HF_HUB_ETAG_TIMEOUT
