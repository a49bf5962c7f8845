"""What the hub's cache holds of a repository, and removing it.

huggingface-hub leaves `models--OWNER--NAME` folders there: blobs, snapshots of links to them, and for each commit a
listing of the repository's files, which shows what a cut download lacks. Other people's folders may lie there, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from huggingface_hub import constants

from fpsgen.errors import ModelError, UsageError
from fpsgen.files import open_regular
from fpsgen.printable import printable, readable
from fpsgen.wan.config import OURS
from fpsgen.weights import layout
from fpsgen.weights.headers import UnreadableError, some
from fpsgen.weights.layout import EXPERTS, PARTS, TOKENIZER_FILES, TOKENIZERS, VAE_2_2, Checkpoint

ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ORIGINAL = ("", *(f"{name}/" for name in EXPERTS.values()))  # where a transformer lies in the original format
# What a repository holds beside these (pictures, examples, other precisions) is not fetched.
NEEDED = [
    *(f"{place}config.json" for place in _ORIGINAL),
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/config.json" for part in PARTS),
    *(part.file for part in (*PARTS.values(), VAE_2_2) if part.file),
    *(f"{folder.as_posix()}/{name}" for folder in TOKENIZERS.values() for name in TOKENIZER_FILES),
    *(
        f"{stem}{ending}"
        for stem in (
            *(f"{place}{PARTS['transformer'].stem}" for place in _ORIGINAL),
            *(f"{name}/{part.stem}" for name, part in PARTS.items()),
        )
        for ending in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")
    ),
]
State = Literal["here", "unreadable", "incomplete", "not here"]
STATES: tuple[State, ...] = get_args(State)  # from the most useful to the least
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Cached:
    """What there is of a repository. folder: its snapshot, if any. files: how many fpsgen needs, and lacking: the names
    of those that are absent, both by the listing, where there is one. absent_bytes: how much is to be fetched, where
    that is known. why: what is wrong, as a sentence; hint: what to do about it, where that is not to fetch it. only:
    the files that were looked for, where they are no whole model."""

    repository: str
    state: State
    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    files: int | None = None
    lacking: tuple[str, ...] = ()
    absent_bytes: int | None = None
    why: str | None = None
    hint: str | None = None
    only: tuple[str, ...] = ()

    @property
    def bytes(self) -> int | None:
        """On disk, where all is there."""
        if self.only and self.folder and self.state == "here":
            return sum((self.folder / name).stat().st_size for name in self.only if (self.folder / name).exists())
        return self.checkpoint.bytes if self.checkpoint else None


def place(repository: str) -> Path:
    """The folder of a repository in the cache, there or not."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def repositories() -> Iterator[str]:
    """Hub ids of all models that the cache has a folder for; none where it cannot be listed."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(constants.HF_HUB_CACHE)):
            if name.startswith("models--") and ID.fullmatch(repository := name[8:].replace("--", "/")):
                yield repository


def look(repository: str, only: tuple[str, ...] = ()) -> Cached:
    """What the cache holds of `repository`, by names, sizes and headers; or of `only` these of its files.

    By the commit that its name means, or by another that is whole: a download of one commit alone leaves no name for
    it, and one that was cut names what is yet to come.
    """
    storage = place(repository)
    try:
        commits = dict.fromkeys(filter(None, (_main(storage), *_snapshots(storage))))
        each = (_look_at(repository, storage, commit, only) for commit in commits)
        nothing = Cached(repository, "not here", only=only)
        best = min(each, key=lambda cached: STATES.index(cached.state), default=nothing)
        if not only and best.state == "not here" and (kept := sum(_blobs(storage).values())):
            return Cached(repository, "incomplete", why=f"its download was cut short; {readable(kept)} are here")
        return best
    except OSError as fault:
        return Cached(repository, "unreadable", why=_unread(storage, fault), hint=_access(storage), only=only)


def snapshots(repository: str) -> list[Path]:
    """The folders of a repository in the cache, whole or not, the newest first."""
    try:
        return list(_snapshots(place(repository)).values())
    except OSError:
        return []


def _unread(storage: Path, fault: OSError) -> str:
    return f"{printable(fault.filename or storage)} cannot be read: {printable(fault.strerror or fault)}"


def _access(storage: Path) -> str:
    mend = f"chmod -R a+rX {shlex.quote(printable(storage))}"
    return f"ask the folder's owner for access ({mend}), or set HF_HOME to a folder of your own"


def _main(storage: Path) -> str | None:
    """The commit that `main` refers to, if it refers to one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        with open_regular(storage / "refs" / "main") as reference:
            commit = reference.read(200).decode(errors="replace").strip()
        return commit if _COMMIT.fullmatch(commit) else None
    return None


def _snapshots(storage: Path) -> dict[str, Path]:
    """Snapshots by commit, the newest first."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folders = [each for each in (storage / "snapshots").iterdir() if _COMMIT.fullmatch(each.name)]
        return {each.name: each for each in sorted(folders, key=lambda each: each.lstat().st_mtime, reverse=True)}
    return {}


def _look_at(repository: str, storage: Path, commit: str, only: tuple[str, ...]) -> Cached:
    folder, sizes = storage / "snapshots" / commit, _listed(repository, storage, commit, list(only) or NEEDED)
    there = {name: file.stat().st_size for name in sizes if (file := folder / name).exists()}
    place = folder if folder.is_dir() else None
    cached = Cached(repository, "incomplete", place, files=len(sizes) or None, only=only)
    if only and not any((folder / name).exists() for name in only):
        cut = any(blob.suffix == ".incomplete" for blob in _blobs(storage))
        return replace(
            cached, state="incomplete" if cut else "not here", why="its download was cut short" if cut else None
        )
    if lacking := {name: size for name, size in sizes.items() if name not in there}:
        linked = {(folder / name).resolve() for name in there}
        message = f"it lacks {len(lacking)} of {len(sizes)} files: {some(lacking)}"
        absent = _to_fetch(lacking, {blob: size for blob, size in _blobs(storage).items() if blob not in linked})
        return replace(cached, why=message, lacking=tuple(lacking), absent_bytes=absent)
    for name, size in there.items():
        if size != sizes[name]:
            message = f"{printable(folder / name)} is damaged: it has {size:,} of {sizes[name]:,} bytes"
            return replace(cached, why=message)
    if not cached.folder:
        return Cached(repository, "not here")
    if only:
        absent_names = [name for name in only if not (folder / name).exists()]
        why = f"it lacks {some(absent_names)}" if absent_names else None
        return replace(cached, state="incomplete" if why else "here", lacking=tuple(absent_names), why=why)
    try:
        return replace(cached, state="here", checkpoint=layout.recognise(folder))
    except UnreadableError as error:
        return replace(cached, state="unreadable", why=str(error), hint=_access(storage))
    except ModelError as error:
        hint = error.hint if error.hint == OURS else None  # another model: fetching it again does not help
        return replace(cached, why=str(error), hint=hint)


def _blobs(storage: Path) -> dict[Path, int]:
    """The files with content, to which snapshots link, and the size of each."""
    return {file: file.stat().st_size for file in (storage.resolve() / "blobs").glob("*") if file.is_file()}


def _to_fetch(lacking: Mapping[str, int], unlinked: Mapping[Path, int]) -> int:
    """How many bytes are to be fetched. The hub's library does not fetch again what lies among the blobs: the first
    parts of files, and whole files to which no snapshot links; these are recognised by their length."""
    parts = sum(size for blob, size in unlinked.items() if blob.suffix == ".incomplete")
    return max(sum(size for size in lacking.values() if size not in unlinked.values()) - parts, 0)


def _listed(repository: str, storage: Path, commit: str, wanted: list[str]) -> dict[str, int]:
    """Files of the repository that are wanted, with their bytes, by the listing of a commit; none without one."""
    if not (storage / "trees" / f"{commit}.json").is_file():
        return {}
    from huggingface_hub import get_cached_repo_tree  # here, for it loads all that talks to the hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    logger = logging.getLogger("huggingface_hub")  # which shows a damaged listing's traceback
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        tree = get_cached_repo_tree(repository, revision=commit, cache_dir=constants.HF_HUB_CACHE)
        needed = filter_repo_objects(tree, allow_patterns=wanted, key=lambda file: file.path)
        return {file.path: int(file.size) for file in needed if ".." not in Path(file.path).parts}
    except (CachedRepoTreeNotFoundError, AttributeError, TypeError, ValueError, RecursionError):
        return {}
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Removal:
    """What removing a repository would do. paths: what goes, folders whole; bytes: what that frees at least; others:
    how many revisions of it stay."""

    repository: str
    paths: tuple[Path, ...]
    bytes: int
    others: int

    def execute(self) -> int:
        """Remove it; bytes freed. ModelError where something could not be removed."""
        before = _bytes(place(self.repository))
        for path in self.paths:
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            except OSError:
                hint = f"ask its owner, or look who may write there: ls -ld {shlex.quote(printable(path))}"
                raise ModelError(f"{printable(path)} could not be removed completely", hint) from None
        return before - _bytes(place(self.repository))


def removal(repository: str, only: tuple[str, ...] = ()) -> Removal | None:
    """What to remove of a repository: the revision that its name means, and what no other revision of it shares; or
    `only` these of its files; None where the cache has nothing of it. UsageError where it reaches out of the cache, or
    may not be read."""
    storage = place(repository)
    try:
        if only and (links := [each / name for each in snapshots(repository) for name in only]):
            return _removal_of(repository, storage, [link for link in links if os.path.lexists(link)])
        return _removal(repository, storage) if storage.is_dir() else None
    except OSError as fault:
        raise UsageError(_unread(storage, fault), hint=_access(storage)) from None


def _removal_of(repository: str, storage: Path, links: list[Path]) -> Removal | None:
    """The same of files in its snapshots, and of the content that they link to."""
    content = {link.resolve() for link in links if link.is_file()}
    if not all(file.is_relative_to(storage.resolve()) for file in content):
        message = f"{repository} has links to files outside the hub's cache"
        raise UsageError(message, hint=f"fpsgen removes nothing there; look at {printable(storage)}")
    freed = sum(file.stat().st_size for file in content)
    return Removal(repository, (*links, *content), freed, 0) if links else None


def _removal(repository: str, storage: Path) -> Removal:
    snapshots = _snapshots(storage)
    meant = {commit for commit in snapshots if commit == _main(storage)} or set(snapshots)
    others = set(snapshots) - meant
    doomed, freed, inside = [storage], _bytes(storage), not storage.is_symlink()

    def content(commits: set[str]) -> set[Path]:
        links = (link for commit in commits for link in snapshots[commit].rglob("*"))
        return {link.resolve() for link in links if link.is_file()}

    if others:
        blobs = content(meant) - content(others)
        named = (each for each in (storage / "refs").rglob("*") if each.is_file())
        doomed = [each for each in named if each.read_text(errors="replace") in meant]
        doomed += [*(path for commit in meant for path in storage.glob(f"*/{commit}*")), *blobs]  # the listing, too
        freed = sum(blob.stat().st_size for blob in blobs)
        inside &= all(path.parent.resolve().is_relative_to(storage.resolve()) for path in doomed)
    if not inside:
        message = f"{repository} is a link to files outside the hub's cache"
        raise UsageError(message, hint=f"fpsgen removes nothing there; look at {printable(storage)}")
    return Removal(repository, tuple(doomed), freed, len(others))


def _bytes(folder: Path) -> int:
    """The size of all files in a folder; links are not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
