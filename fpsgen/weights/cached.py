"""What the hub's cache holds of a repository, told as it is, and removing it.

huggingface-hub leaves `models--OWNER--NAME` folders there: blobs, snapshots of links to them, and for each commit a
listing of the repository's files, which tells what a cut download lacks. Other people's folders may lie there, too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants, get_cached_repo_tree, scan_cache_dir
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.utils import DeleteCacheStrategy

from fpsgen.errors import ModelError, UsageError
from fpsgen.files import open_regular
from fpsgen.printable import printable, readable
from fpsgen.wan.config import OURS
from fpsgen.weights import layout
from fpsgen.weights.headers import some
from fpsgen.weights.layout import Checkpoint

ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
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


_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Cached:
    """What there is of a repository. folder: its snapshot, if any. files, lacking: bytes of those that fpsgen needs and
    of those that are absent, by the listing; empty where there is none. partial: bytes of these that are here.
    why: what is wrong, as a sentence; hint: what to do about it, where that is not to fetch it."""

    repository: str
    state: Literal["here", "incomplete", "unreadable", "not here"]
    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    lacking: Mapping[str, int] = field(default_factory=dict)
    partial: int = 0
    why: str | None = None
    hint: str | None = None

    @property
    def lacking_bytes(self) -> int:
        """What is to be fetched."""
        return max(sum(self.lacking.values()) - self.partial, 0)


def place(repository: str) -> Path:
    """The folder of a repository in the cache, there or not."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def is_there(repository: str) -> bool:
    """Whether the cache has a folder for a repository, whatever is in it; UsageError where that may not be known."""
    try:
        return place(repository).is_dir()
    except OSError as fault:
        raise UsageError(_unread(place(repository), fault), hint=_access(place(repository), fault)) from None


def repositories() -> Iterator[str]:
    """Hub ids of all models that the cache has a folder for; none where it cannot be listed."""
    try:
        names = sorted(os.listdir(constants.HF_HUB_CACHE))
    except OSError:
        return
    for name in names:
        if name.startswith("models--") and ID.fullmatch(repository := name[8:].replace("--", "/")):
            yield repository


def look(repository: str) -> Cached:
    """What the cache holds of `repository`, by names, sizes and headers."""
    storage = place(repository)
    try:
        return _look(repository, storage)
    except OSError as fault:
        return Cached(repository, "unreadable", why=_unread(storage, fault), hint=_access(storage, fault))


def _unread(storage: Path, fault: OSError) -> str:
    return f"{printable(fault.filename or storage)} cannot be read: {printable(fault.strerror or fault)}"


def _access(storage: Path, fault: OSError) -> str:
    where = shlex.quote(printable(storage))
    mend = f"ask its owner for access: chmod -R a+rX {where}"
    if not isinstance(fault, PermissionError):
        mend = f"look what it is: ls -ld {where}"
    return f"{mend}; or set HF_HOME to a folder of your own"


def _look(repository: str, storage: Path) -> Cached:
    """By the commit that its name means, or by another that is whole: a download of one commit alone leaves no name
    for it, and one that was cut names what is yet to come."""
    commits, damaged = _commits(storage)
    looked = [_look_at(repository, storage, commit) for commit in commits]
    if whole := next((found for found in looked if found.state == "here"), None):
        return whole
    if damaged:
        return Cached(repository, "incomplete", why=damaged)
    if told := next((found for found in looked if found.state != "not here"), None):
        return told
    if kept := _kept(storage / "blobs", (), None):
        return Cached(repository, "incomplete", why=f"a download of it was cut; {readable(kept)} of it are here")
    return Cached(repository, "not here")


def _commits(storage: Path) -> tuple[list[str], str | None]:
    """The commit that a repository's name means, then others that have a snapshot, the newest first; and a sentence
    where the name means none."""
    try:
        os.listdir(storage)
    except (FileNotFoundError, NotADirectoryError):
        return [], None
    named: list[str] = []
    damaged = None
    try:
        with open_regular(storage / "refs" / "main") as reference:
            commit = reference.read(200).decode(errors="replace").strip()
        if _COMMIT.fullmatch(commit):
            named = [commit]
        else:
            damaged = f"{printable(storage / 'refs' / 'main')} names no commit"
    except FileNotFoundError:
        pass
    others: list[str] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        others = [name for name in os.listdir(storage / "snapshots") if _COMMIT.fullmatch(name)]
    others.sort(key=lambda name: (storage / "snapshots" / name).lstat().st_mtime, reverse=True)
    return list(dict.fromkeys((*named, *others))), damaged


def _look_at(repository: str, storage: Path, commit: str) -> Cached:
    folder = storage / "snapshots" / commit
    there = folder.is_dir()
    found = Cached(repository, "incomplete", folder if there else None, files=_listed(repository, storage, commit))
    lacking, damaged = _compare(folder, found.files)
    if lacking:
        partial = _kept(storage / "blobs", [size for name, size in found.files.items() if name not in lacking], lacking)
        told = f"it lacks {len(lacking)} of {len(found.files)} files: {some(lacking)}"
        return replace(found, why=told, lacking=lacking, partial=partial)
    if damaged:
        return replace(found, why=damaged)
    if not there:
        return Cached(repository, "not here")
    try:
        return replace(found, state="here", checkpoint=layout.recognise(folder))
    except ModelError as error:
        every = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        _compare(folder, dict.fromkeys(every, 0))  # one that may not be read is why
        hint = error.hint if error.hint == OURS else None  # another model: fetching it again does not help
        return replace(found, why=str(error), hint=hint)


def _compare(folder: Path, files: Mapping[str, int]) -> tuple[dict[str, int], str | None]:
    """Which of `files` a snapshot lacks, and a sentence about one that has another length; PermissionError where one
    may not be read."""
    lacking, damaged = {}, None
    for name, size in files.items():
        file = folder / name
        try:
            found = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            lacking[name] = size
            continue
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        if found.st_size != size:
            damaged = f"{printable(file)} is damaged: it has {found.st_size:,} of {size:,} bytes"
    return lacking, damaged


def _kept(blobs: Path, linked: Iterable[int], lacking: Mapping[str, int] | None) -> int:
    """Bytes of lacking files that lie among the blobs all the same: of cut downloads, and of files to which no link
    leads, known by their length; of all such, where it is not known what lacks."""
    files = [file for file in blobs.glob("*") if file.is_file()]
    free = Counter(file.stat().st_size for file in files if file.suffix != ".incomplete") - Counter(linked)
    unlinked = (free if lacking is None else free & Counter(lacking.values())).elements()
    return sum(unlinked) + sum(file.stat().st_size for file in files if file.suffix == ".incomplete")


def _listed(repository: str, storage: Path, commit: str) -> dict[str, int]:
    """Files of the repository that fpsgen needs, with their bytes, by the listing of a commit; none without one."""
    if not (storage / "trees" / f"{commit}.json").is_file():
        return {}
    try:
        with _silent():
            tree = get_cached_repo_tree(repository, revision=commit, cache_dir=constants.HF_HUB_CACHE)
        needed = [file for file in tree if any(fnmatchcase(file.path, pattern) for pattern in NEEDED)]
        return {file.path: int(file.size) for file in needed if ".." not in Path(file.path).parts}
    except (CachedRepoTreeNotFoundError, AttributeError, TypeError, ValueError, RecursionError):
        return {}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What huggingface-hub logs of a fault, with tracebacks, is not shown: the fault itself is told."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class Removal:
    """What removing a repository would do. bytes: what that frees; others: how many revisions of it stay."""

    repository: str
    bytes: int
    others: int
    strategy: DeleteCacheStrategy

    def execute(self) -> int:
        """Remove it; bytes freed. ModelError where something could not be removed."""
        storage = place(self.repository)
        before = _bytes(storage)
        with _silent():
            self.strategy.execute()
        if stays := [path for path in (*self.strategy.repos, *self.strategy.snapshots) if path.exists()]:
            hint = f"ask its owner, or look who may write there: ls -ld {printable(stays[0])}"
            raise ModelError(f"{printable(stays[0])} could not be removed, or not whole", hint)
        return max(before - _bytes(storage), self.bytes)


def removal(repository: str) -> Removal:
    """What to remove of a repository: the revision that its name means, and what no other revision of it shares.

    UsageError where nothing of it is there, where it reaches out of the cache, or where it may not be read.
    """
    try:
        return _removal(repository)
    except OSError as fault:
        raise UsageError(_unread(place(repository), fault), hint=_access(place(repository), fault)) from None


def _removal(repository: str) -> Removal:
    cache, storage = Path(constants.HF_HUB_CACHE).resolve(), place(repository).absolute()
    if not is_there(repository):
        raise UsageError(f"{repository} is not in the hub's cache", hint="fpsgen models lists what is here")
    try:
        info = scan_cache_dir(cache)
        found = next(repo for repo in info.repos if repo.repo_path.name == storage.name)
    except (OSError, StopIteration):  # other people's folders that cannot be read; or this one is damaged
        if len(list((storage / "snapshots").glob("*"))) > 1:
            told = f"{repository} has several revisions, and what they share cannot be told"
            raise UsageError(told, hint=f"to remove all of them: rm -r {shlex.quote(str(storage))}") from None
        whole: dict[str, Any] = dict.fromkeys(("blobs", "refs", "snapshots"), frozenset())
        strategy = DeleteCacheStrategy(_bytes(storage), repos=frozenset({cache / storage.name}), **whole)
        others = 0
    else:
        meant = [found.refs["main"]] if "main" in found.refs else list(found.revisions)
        # Copies of a repository share its commits: the strategy must not meet another's first.
        own = replace(info, repos=frozenset({found}))
        strategy = own.delete_revisions(*(revision.commit_hash for revision in meant))
        others = len(found.revisions) - len(meant)
    home = cache / storage.name
    parts = (*strategy.snapshots, *strategy.refs, *strategy.blobs)
    inside = all(path.parent.resolve().is_relative_to(home) for path in parts)
    if home.is_symlink() or not inside or any(path.is_symlink() for path in strategy.snapshots):
        told = f"{repository} is linked to files outside the hub's cache"
        raise UsageError(told, hint=f"fpsgen removes nothing there; look at {printable(home)}")
    return Removal(repository, strategy.expected_freed_size, others, strategy)


def _bytes(folder: Path) -> int:
    """The size of all files in a folder; links are not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
