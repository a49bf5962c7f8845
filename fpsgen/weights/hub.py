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
from fpsgen.errors import DownloadError, ModelError, UsageError
from fpsgen.printable import printable, readable, typed
from fpsgen.weights import layout
from fpsgen.weights.cached import ID, NEEDED, Cached, look, repositories
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


def pull_hint(key: str) -> str:
    """The command that fetches a known model, or what is absent of it, and how much that is."""
    form, cached = nearest(key)
    option = "" if form == "original" else f" --format {form}"
    return f"fpsgen models pull {key}{option} ({to_fetch(key, form, cached)})"


def to_fetch(key: str, form: Format, cached: Cached) -> str:
    """How much is to be fetched of a known model, in words."""
    if not cached.lacking:
        return f"about {DOWNLOAD_GB[key][form]} GB"
    return f"{readable(cached.lacking_bytes)}; the rest is here"


def nearest(key: str) -> tuple[Format, Cached]:
    """The format of a known model of which least is to be fetched, the original where that is all the same."""
    looked = {form: look(repository) for form, repository in REPOSITORIES[key].items()}
    absent = {
        form: found.lacking_bytes if found.lacking else DOWNLOAD_GB[key][form] * 1e9 for form, found in looked.items()
    }
    form = min(absent, key=absent.__getitem__)
    return form, looked[form]


def on_disk(key: str) -> Path | None:
    """The downloaded folder of a known model in either format, or None where it is absent or not whole."""
    found = map(look, REPOSITORIES[key].values())
    return next((cached.folder for cached in found if cached.state == "here"), None)


def refusal(cached: Cached, name: str) -> ModelError:
    """The error for a model of which the cache holds something that is not whole, with what mends it."""
    if cached.state == "unreadable":
        return ModelError(f"model {name} cannot be used: {cached.why}", hint=cached.hint)
    size = f" ({readable(cached.lacking_bytes)})" if cached.lacking else ""
    hint = f"fpsgen models pull {name} fetches what is absent{size}; with --force, everything anew"
    told = "is incomplete in the hub's cache" if cached.lacking else "cannot be used"
    return ModelError(f"model {name} {told}: {cached.why}", hint=cached.hint or hint)


def downloaded() -> list[Cached]:
    """Wan2.1 checkpoints other than the known ones that the cache holds."""
    known = {repository for formats in REPOSITORIES.values() for repository in formats.values()}
    found = (look(repository) for repository in repositories() if repository not in known)
    return [cached for cached in found if cached.state == "here"]


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
        raise UsageError(
            f"{typed(name)} is not a model to fetch",
            hint=f"give one of {', '.join(REPOSITORIES)} or a hub id",
        )
    return name


def plan(repository: str, force: bool = False) -> Download:
    """Ask the hub what `pull` would fetch; UsageError where it has nothing of Wan2.1's under that name.

    force: files that are here already as well. Offline, a model that is whole on disk is a download of nothing.
    """
    if not force and (folder := _whole_offline(repository)):
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


def _whole_offline(repository: str) -> Path | None:
    """The folder of a model that is here, where the hub may not be asked."""
    cached = look(repository) if constants.HF_HUB_OFFLINE else None
    return cached.folder if cached and cached.state == "here" else None


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
    if not download.absent and (folder := _whole_offline(download.repository)):
        return folder
    kept = f"what arrived is kept: fpsgen models pull {download.repository} continues from there"
    with _explained(download.repository, kept):
        small = [pattern for pattern in NEEDED if pattern.split("/")[-1] in ("config.json", "model_index.json")]
        folder = Path(snapshot_download(download.repository, allow_patterns=small))
        try:
            layout.refuse_other_models(folder)
        except ModelError as error:
            raise ModelError(f"{download.repository} cannot be used: {error}", hint=error.hint) from None
        needed = list(NEEDED)
        folder = Path(snapshot_download(download.repository, allow_patterns=needed, force_download=download.force))
    from fpsgen.weights import load  # here, for it imports torch

    try:
        load.check(layout.recognise(folder))
    except ModelError as error:
        hint = f"fpsgen models pull {download.repository} --force"
        raise ModelError(f"{download.repository} arrived damaged: {error}", hint) from None
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
    except HFValidationError as fault:
        hint = "a hub id is OWNER/NAME, such as Wan-AI/Wan2.1-T2V-1.3B"
        raise UsageError(f"{printable(repository)} is not a hub id: {printable(fault)}", hint) from None
    except GatedRepoError:
        raise UsageError(f"{repository} asks for a login", hint="hf auth login") from None
    except RepositoryNotFoundError:
        raise UsageError(f"the hub has no {repository}", hint="see `fpsgen models` for names") from None
    except HfHubHTTPError as fault:
        status = fault.response.status_code if fault.response is not None else "an error"
        if status in (401, 403):
            raise UsageError(f"the hub does not let you have {repository}", hint="hf auth login") from None
        raise DownloadError(f"the hub answered {status} for {repository}", f"try later; {hint}") from None
    except (KeyError, TypeError, ValueError, RecursionError):  # a proxy's login page, say, or a million brackets
        raise DownloadError(f"what answers at {constants.ENDPOINT} is no hub", hint="check HF_ENDPOINT") from None
    except Exception as fault:
        raise _failure(fault, repository, hint) from None


def _failure(fault: Exception, repository: str, hint: str) -> Exception:
    """What to raise for a failure of the network, the disk or the library."""
    if constants.HF_HUB_OFFLINE:
        return UsageError("HF_HUB_OFFLINE is set, so nothing is fetched", hint="unset HF_HUB_OFFLINE")
    cause = fault.__cause__ if isinstance(fault, LocalEntryNotFoundError) and fault.__cause__ else fault
    # The library's HTTP client is its own affair, and has changed between its releases.
    if not (isinstance(fault, OSError) or type(fault).__module__.startswith("httpx")):
        return fault
    if isinstance(fault, (PermissionError, NotADirectoryError, FileExistsError)):
        where = printable(constants.HF_HUB_CACHE)
        return UsageError(f"{where} cannot be written", "set HF_HOME to another folder")
    if "Timeout" in type(cause).__name__:
        longer = f"HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set longer waits; {hint}"
        return DownloadError(f"the hub at {constants.ENDPOINT} did not answer in time", longer)
    if "Connect" in type(fault).__name__ or isinstance(fault, (LocalEntryNotFoundError, ConnectionError)):
        return DownloadError(f"the hub at {constants.ENDPOINT} cannot be reached", hint=hint)
    told = printable(fault) or type(fault).__name__
    return DownloadError(f"fetching {repository} failed: {told}", hint=hint)


def _limit_wait(request: Any) -> None:
    """A hook of huggingface-hub's HTTP client, which waits for ever where a call of the library names no time."""
    waits = request.extensions.setdefault("timeout", {})
    for phase in ("connect", "read", "write", "pool"):
        if waits.get(phase) is None:
            waits[phase] = constants.HF_HUB_ETAG_TIMEOUT
