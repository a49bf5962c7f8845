"""Which of the known checkpoints are on this machine, and how others are fetched from the Hugging Face hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub  # whose functions load where they are first asked for, in a fifth of a second
from huggingface_hub import constants

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
DOWNLOAD_GB = {
    "Wan-AI/Wan2.1-T2V-1.3B": 18,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 29,
    "Wan-AI/Wan2.1-T2V-14B": 69,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": 80,
}


def known() -> Iterator[tuple[str, Format, Cached]]:
    """Name, format and state of the known models in both formats."""
    return ((key, form, look(each)) for key, formats in REPOSITORIES.items() for form, each in formats.items())


def others() -> Iterator[tuple[str, Format, Cached]]:
    """The same of other Wan2.1 checkpoints in the cache."""
    for repository in repositories():
        if repository not in DOWNLOAD_GB and (checkpoint := (cached := look(repository)).checkpoint):
            yield repository, checkpoint.format, cached


def nearest(key: str) -> Cached:
    """The state of a known model in the format that is complete, or else nearest to that; at worst, of the original."""
    looked = map(look, REPOSITORIES[key].values())
    return min(looked, key=lambda cached: (STATES.index(cached.state), cached.absent_bytes or 0))


def on_disk(key: str) -> Path | None:
    """The downloaded folder of a known model in either format, or None where it is absent or not whole."""
    cached = nearest(key)
    return cached.folder if cached.state == "here" else None


def to_fetch(cached: Cached) -> str:
    """How much is to be fetched of a model, in words; empty where that is not known."""
    if cached.absent_bytes is not None:
        return f"{readable(cached.absent_bytes)}; the rest is here"
    return f"about {DOWNLOAD_GB[cached.repository]} GB" if cached.repository in DOWNLOAD_GB else ""


def pull_hint(cached: Cached) -> str:
    """The command that fetches a model, or what is absent of it, and how much that is."""
    size = to_fetch(cached)
    return f"fpsgen models pull {short_name(cached.repository)}" + (f" ({size})" if size else "")


def short_name(repository: str) -> str:
    """What `fpsgen models pull` takes for a repository: 1.3b or 14b, where they mean it, else its id."""
    return next((key for key, formats in REPOSITORIES.items() if formats["original"] == repository), repository)


def refusal(cached: Cached) -> ModelError:
    """The error for a model that the cache does not hold completely, with its remedy as hint."""
    name = short_name(cached.repository)
    if cached.state == "not here":
        known = cached.repository in DOWNLOAD_GB
        where = "is not on this machine" if known else "is neither a folder here nor a downloaded model"
        return ModelError(f"model {name} {where}", hint=pull_hint(cached))
    message = "is incomplete in the hub's cache" if cached.lacking else "cannot be used"
    size = f" ({readable(cached.absent_bytes)})" if cached.absent_bytes is not None else ""
    hint = f"fpsgen models pull {name} fetches the missing files{size}; add {option('force')} to fetch all files again"
    return ModelError(f"model {name} {message}: {cached.why}", hint=cached.hint or hint)


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
        hint = f'fpsgen generate "a cat surfing" {option("model", "pocket")}'
        raise UsageError("the pocket model comes with fpsgen, so there is nothing to fetch", hint)
    if not ID.fullmatch(name):
        hint = f"give one of {', '.join(REPOSITORIES)} or a hub id"
        raise UsageError(f"{typed(name)} is not a model to fetch", hint)
    return name


def plan(repository: str, force: bool = False) -> Download:
    """Ask the hub what `pull` would fetch; UsageError where it has nothing of Wan2.1's under that name.

    force: files that are here already as well. Offline, a model that is whole on disk is a download of nothing.
    """
    if constants.HF_HUB_OFFLINE and not force and (cached := look(repository)).state == "here" and cached.folder:
        here = [path for path in cached.folder.rglob("*") if path.is_file()]
        files = {path.relative_to(cached.folder).as_posix(): path.stat().st_size for path in here}
        return Download(repository, files, {}, folder=cached.folder)
    copied = f"fetch the model on another machine, copy its folder here, and give it as {option('model')}"
    with _explained(repository, f"check the network; or {copied}"):
        try:
            remote = huggingface_hub.snapshot_download(repository, allow_patterns=NEEDED, dry_run=True)
        except huggingface_hub.errors.DryRunError as failure:  # says nothing of its own
            raise failure.__cause__ or failure from None
    files = {info.filename: info.file_size or 0 for info in remote}
    if not any(name.endswith((".safetensors", ".pth")) for name in files):
        hint = "fpsgen models lists names; of a transformer in one file, fetch that file and name it as the model"
        raise UsageError(f"{repository} holds no Wan2.1 checkpoint", hint)
    absent = {info.filename: info.file_size or 0 for info in remote if info.will_download or force}
    return Download(repository, files, absent, force)


def pull(download: Download) -> Path:
    """Fetch the missing files, continuing an earlier attempt. huggingface-hub draws its own progress bars.

    Raises ModelError before the weights where the configuration is another model's, and after them where they are
    damaged.
    """
    if download.folder:
        return download.folder
    repository, free = download.repository, shutil.disk_usage(assets.existing(Path(constants.HF_HUB_CACHE))).free
    if download.absent_bytes > free:
        message = f"{repository} needs {readable(download.absent_bytes)}, the disk has {readable(free)} left"
        raise UsageError(message, hint="set HF_HOME to a folder on a larger disk")
    with _explained(repository, f"what arrived is kept: fpsgen models pull {repository} continues from there"):
        small = [pattern for pattern in NEEDED if pattern.split("/")[-1] in ("config.json", "model_index.json")]
        try:
            layout.refuse_other_models(Path(huggingface_hub.snapshot_download(repository, allow_patterns=small)))
        except ModelError as error:
            raise ModelError(f"{repository} cannot be used: {error}", hint=error.marked_hint) from None
        folder = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=NEEDED, force_download=download.force)
        )
    from fpsgen.weights import load  # here, for it imports torch

    try:
        load.check(layout.recognise(folder))
    except ModelError as error:
        hint = f"fpsgen models pull {repository} {option('force')}"
        raise ModelError(f"{repository} arrived damaged: {error}", hint) from None
    return folder


@contextmanager
def _explained(repository: str, hint: str) -> Iterator[None]:
    """Turn failures of the hub and the network into sentences. hint: what to do about those that may pass."""
    hooks = huggingface_hub.get_session().event_hooks["request"]
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
    errors = huggingface_hub.errors  # loaded with whatever failed
    if isinstance(fault, errors.HFValidationError):
        message = f"{printable(repository)} is not a hub id: {printable(fault)}"
        return UsageError(message, "a hub id is OWNER/NAME, such as Wan-AI/Wan2.1-T2V-1.3B")
    if isinstance(fault, errors.RepositoryNotFoundError) and not isinstance(fault, errors.GatedRepoError):
        return UsageError(f"the hub has no {repository}", "see `fpsgen models` for names")
    if isinstance(fault, errors.HfHubHTTPError):
        status = fault.response.status_code if fault.response is not None else "an error"
        if isinstance(fault, errors.GatedRepoError) or status in (401, 403):
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
    absent = isinstance(fault, errors.LocalEntryNotFoundError)
    if "Timeout" in type((absent and fault.__cause__) or fault).__name__:
        longer = f"HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT set longer waits; {hint}"
        return DownloadError(f"the hub at {constants.ENDPOINT} did not answer in time", longer)
    if absent or "Connect" in type(fault).__name__ or isinstance(fault, ConnectionError):
        return DownloadError(f"the hub at {constants.ENDPOINT} cannot be reached", hint)
    return DownloadError(f"fetching {repository} failed: {printable(fault) or type(fault).__name__}", hint)


def _limit_wait(request: Any) -> None:
    """A hook of huggingface-hub's HTTP client: without it, calls for which the library sets no time limit may hang."""
    waits = request.extensions.setdefault("timeout", {})
    for phase in ("connect", "read", "write", "pool"):
        if waits.get(phase) is None:
            waits[phase] = constants.HF_HUB_ETAG_TIMEOUT
