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
from fpsgen.weights import headers, layout, shared
from fpsgen.weights.cached import ID, NEEDED, STATES, Cached, look, repositories
from fpsgen.weights.headers import some
from fpsgen.weights.known import MODELS, PIECES, Format, Known, Source

# Of whole models, by repository.
DOWNLOAD_GB = {
    source.repository: source.gb
    for known in MODELS.values()
    for source in known.sources.values()
    if source.gb is not None and not source.files
}


def known() -> Iterator[tuple[str, Format, Cached]]:
    """Name, format and state of the known models in each format."""
    return (
        (key, form, look(each.repository, each.files))
        for key, known in MODELS.items()
        for form, each in known.sources.items()
    )


def known_as(name: str) -> Known | None:
    """What is known of a model by its name or hub id."""
    ids = (known for known in MODELS.values() if name in {source.repository for source in known.sources.values()})
    return MODELS.get(name.lower()) or next((known for known in ids if not known.files), None)


def others() -> Iterator[tuple[str, Format, Cached]]:
    """The same of other checkpoints in the cache."""
    named = {source.repository for known in MODELS.values() for source in known.sources.values()}
    for repository in repositories():
        if repository not in named and (checkpoint := (cached := look(repository)).checkpoint):
            yield repository, checkpoint.format, cached


def nearest(key: str) -> Cached:
    """The state of a known model in the format that is complete, or else nearest to that; at worst, of the original."""
    looked = (look(source.repository, source.files) for source in MODELS[key].sources.values())
    return min(looked, key=lambda cached: (STATES.index(cached.state), cached.absent_bytes or 0))


def on_disk(key: str) -> Path | None:
    """The downloaded folder of a known whole model in either format, or None where it is absent or not whole."""
    cached = nearest(key)
    return cached.folder if cached.state == "here" and not cached.only else None


def source_of(repository: str, only: tuple[str, ...] = ()) -> Source:
    """What the tables say of a repository, or of files of one."""
    every = (*(source for known in MODELS.values() for source in known.sources.values()), *PIECES.values())
    found = (source for source in every if (source.repository, source.files) == (repository, only))
    return next(found, Source(repository, None, only))


def to_fetch(cached: Cached) -> str:
    """How much is to be fetched of a model, in words; empty where that is not known."""
    if cached.absent_bytes is not None:
        return f"{readable(cached.absent_bytes)}; the rest is here"
    gb = source_of(cached.repository, cached.only).gb
    return "" if gb is None else f"about {readable(int(gb * 1e9)) if gb < 1 else f'{gb:g} GB'}"


def pull_hint(cached: Cached) -> str:
    """The command that fetches a model, or what is absent of it, and how much that is."""
    size = to_fetch(cached)
    return f"fpsgen models pull {short_name(cached.repository, cached.only)}" + (f" ({size})" if size else "")


def short_name(repository: str, only: tuple[str, ...] = ()) -> str:
    """What `fpsgen models pull` takes for a repository, or for files of one: 1.3b or 14b, where they mean it, else its
    id."""
    named = ((key, known.sources.get("original") or known.sources["diffusers"]) for key, known in MODELS.items())
    found = (
        key for key, source in (*named, *PIECES.items()) if (source.repository, source.files) == (repository, only)
    )
    return next(found, repository)


def refusal(cached: Cached) -> ModelError:
    """The error for a model that the cache does not hold completely, with its remedy as hint."""
    name = short_name(cached.repository, cached.only)
    if singles := _singles(cached.repository, cached.only):
        message = f"{cached.repository} holds transformers in files of their own, of which one is a model"
        return ModelError(message, hint=f"give {' or '.join(singles)}, or the file that is meant")
    if cached.state == "not here":
        named = bool(cached.only) or cached.repository in DOWNLOAD_GB
        where = "is not on this machine" if named else "is neither a folder here nor a downloaded model"
        return ModelError(f"model {name} {where}", hint=pull_hint(cached))
    message = "is incomplete in the hub's cache" if cached.lacking else "cannot be used"
    size = f" ({readable(cached.absent_bytes)})" if cached.absent_bytes is not None else ""
    hint = f"fpsgen models pull {name} fetches the missing files{size}; add {option('force')} to fetch all files again"
    return ModelError(f"model {name} {message}: {cached.why}", hint=cached.hint or hint)


def _singles(repository: str, only: tuple[str, ...]) -> list[str]:
    """The names of models that are files of a repository, where it was named as a whole and is none."""
    if only or repository in DOWNLOAD_GB:
        return []
    return [
        key
        for key, known in MODELS.items()
        if known.files and repository in {source.repository for source in known.sources.values()}
    ]


@dataclass(frozen=True)
class Download:
    """What `pull` fetches: the files of a repository that are needed, those to be fetched, both with their bytes; the
    folder where offline all is here. only: that these are all that is wanted of the repository."""

    repository: str
    files: dict[str, int]
    absent: dict[str, int]
    force: bool = False
    folder: Path | None = None
    only: tuple[str, ...] = ()

    @property
    def absent_bytes(self) -> int:
        return sum(self.absent.values())


def source(name: str, form: Format | None = None) -> Source:
    """The repository, and the files of it, that a known name or a hub id means; UsageError otherwise, or where the
    format is another."""
    key = name.lower()
    if key in PIECES:
        return PIECES[key]
    if key in MODELS:
        sources = MODELS[key].sources
        own = next(iter(sources)) if form is None else form
        if own not in sources:
            message = f"{key} is published in {' and '.join(sources)} format only"
            raise UsageError(message, hint=f"leave {option('format')} out")
        return sources[own]
    if key == "pocket":
        hint = f'fpsgen generate "a cat surfing" {option("model", "pocket")}'
        raise UsageError("the pocket model comes with fpsgen, so there is nothing to fetch", hint)
    if not ID.fullmatch(name):
        hint = f"give one of {', '.join((*MODELS, *PIECES))} or a hub id"
        raise UsageError(f"{typed(name)} is not a model to fetch", hint)
    return Source(name, None)


def plans(name: str, form: Format | None = None, force: bool = False) -> list[Download]:
    """What `pull` would fetch for a name: a model, or a transformer and the parts that it needs and that the hub's
    cache has nowhere. UsageError as for `source` and `plan`."""
    own, pieces = source(name, form), dict[str, list[str]]()
    if (known := MODELS.get(name.lower())) and known.files:
        for piece in (PIECES[each] for each in shared.lacking(known.kind)):
            pieces.setdefault(piece.repository, []).extend(piece.files)
    others = [plan(Source(repository, None, tuple(files))) for repository, files in pieces.items()]
    return [plan(own, force), *others]


def plan(wanted: Source, force: bool = False) -> Download:
    """Ask the hub what `pull` would fetch; UsageError where it has nothing of Wan's under that name.

    force: files that are here already as well. Offline, a model that is whole on disk is a download of nothing.
    """
    repository, only = wanted.repository, wanted.files
    if constants.HF_HUB_OFFLINE and not force and (cached := look(repository, only)).state == "here" and cached.folder:
        here = [path for path in cached.folder.rglob("*") if path.is_file()]
        files = {path.relative_to(cached.folder).as_posix(): path.stat().st_size for path in here}
        files = {name: size for name, size in files.items() if not only or name in only}
        return Download(repository, files, {}, folder=cached.folder, only=only)
    copied = f"fetch the model on another machine, copy its folder here, and give it as {option('model')}"
    with _explained(repository, f"check the network; or {copied}"):
        try:
            remote = huggingface_hub.snapshot_download(repository, allow_patterns=list(only) or NEEDED, dry_run=True)
        except huggingface_hub.errors.DryRunError as failure:  # says nothing of its own
            raise failure.__cause__ or failure from None
    files = {info.filename: info.file_size or 0 for info in remote}
    if gone := [name for name in only if name not in files]:
        hint = "see its page on the hub; of a transformer in one file, fetch that file and name it as the model"
        raise UsageError(f"{repository} no longer has {some(gone)}", hint)
    if not only and not any(name.endswith((".safetensors", ".pth")) for name in files):
        if singles := _singles(repository, only):
            message = f"{repository} holds transformers in files of their own, of which one is a model"
            raise UsageError(message, hint=f"fpsgen models pull {singles[0]}; there are also {', '.join(singles[1:])}")
        hint = "fpsgen models lists names; of a transformer in one file, fetch that file and name it as the model"
        raise UsageError(f"{repository} holds no Wan checkpoint", hint)
    absent = {info.filename: info.file_size or 0 for info in remote if info.will_download or force}
    return Download(repository, files, absent, force, only=only)


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
    name = short_name(repository, download.only)
    with _explained(repository, f"what arrived is kept: fpsgen models pull {name} continues from there"):
        small = [pattern for pattern in NEEDED if pattern.split("/")[-1] in ("config.json", "model_index.json")]
        try:
            if not download.only:
                layout.refuse_other_models(Path(huggingface_hub.snapshot_download(repository, allow_patterns=small)))
        except ModelError as error:
            raise ModelError(f"{repository} cannot be used: {error}", hint=error.marked_hint) from None
        wanted = list(download.only) or NEEDED
        folder = Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=wanted, force_download=download.force)
        )
    try:
        if download.only:
            for file in filter(lambda file: file.endswith((".safetensors", ".pth")), download.only):
                headers.contents(folder / file)
        else:
            from fpsgen.weights import load  # here, for it imports torch

            load.check(layout.recognise(folder))
    except ModelError as error:
        hint = f"fpsgen models pull {name} {option('force')}"
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
