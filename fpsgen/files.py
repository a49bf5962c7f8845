"""Files that appear under their name only when they are complete; nothing stays of those that never were."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import itertools
import json
import os
import secrets
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from fpsgen.errors import UsageError, option, reason
from fpsgen.printable import printable

UNFINISHED = ".unfinished"  # after the name of a video, that of the file which keeps its state (`unfinished`)
_FOLDER = ".fpsgen-folder-"
_A_DAY = 24 * 3600  # seconds
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def expand(path: Path) -> Path:
    """A path with the home folder it means."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user", hint="choose another place") from None


def place(given: str) -> tuple[Path, bool]:
    """Where something goes, and whether that is a folder: its name ends in /, or it is there."""
    path = expand(Path(given))
    return path, given.endswith(("/", os.sep)) or os.path.isdir(path)


def resolved(path: Path) -> Path:
    """Where a file lies, links followed; OSError where they lead in a circle."""
    try:
        return path.resolve()
    except RuntimeError:  # what Python said until 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty hidden file next to `path`, or to what it links to, to be written and renamed; removed in the end where
    it was not. It has the suffix and the mode of `path`; its name is short because names are limited, and absolute
    because ffmpeg takes "take:1.mp4" for a protocol.
    """
    real = resolved(path)
    hidden = real.with_name(f".fpsgen-{secrets.token_hex(6)}{path.suffix}")
    hidden.touch(exist_ok=False)
    try:
        with contextlib.suppress(OSError):
            hidden.chmod(stat.S_IMODE(real.stat().st_mode) | stat.S_IWUSR)
        yield hidden
    finally:
        with contextlib.suppress(OSError):  # the disk's first complaint is the one to hear
            hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """The same, a folder for what will be the folder `path`."""
    real = resolved(path)
    hidden = real.with_name(f"{_FOLDER}{secrets.token_hex(6)}")
    hidden.mkdir()
    try:
        with contextlib.suppress(OSError):
            hidden.chmod(stat.S_IMODE(real.stat().st_mode) | stat.S_IRWXU)
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove hidden files, and folders of `folder_beside`, that nobody has written to for a day: what killed runs
    left."""
    for left in folder.glob(".fpsgen-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.lstat().st_mtime > _A_DAY:
                if left.name.startswith(_FOLDER) and left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder for temporary files that is gone in the end."""
    with tempfile.TemporaryDirectory(prefix=f"fpsgen-{purpose}-") as folder:
        yield Path(folder)


def numbered(path: Path) -> Iterator[Path]:
    """`path`, then path-2, path-3 and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def put_as_new(whole: Path, path: Path) -> Path:
    """Rename a file to the first free name of `numbered`, and return it: nothing is replaced, not even what another
    process puts there at this moment."""
    for free in numbered(path):
        with contextlib.suppress(FileExistsError):
            free.touch(exist_ok=False)
            return whole.replace(free)
    raise AssertionError


def alike(path: Path, other: Path) -> bool:
    """Whether two regular files have the same content."""
    with contextlib.suppress(OSError):
        return other.is_file() and filecmp.cmp(path, other, shallow=False)
    return False


def put_folder_as_new(whole: Path, path: Path) -> Path:
    """The same for a folder, which may take the place of an empty one."""
    for free in numbered(resolved(path) if path.is_symlink() else path):
        with contextlib.suppress(OSError):
            free.rmdir()  # which leaves what has something in it
        try:
            return whole.rename(free)
        except OSError:
            if not os.path.lexists(free):
                raise
    raise AssertionError


def write_text(path: Path, text: str) -> None:
    """UTF-8, by one rename: whoever is killed meanwhile leaves what was there before. Folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as whole:
        whole.write_text(text, encoding="utf-8", errors="replace")
        whole.replace(path.resolve())  # a link stays one


def write_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_writable(path: Path) -> None:
    """OSError where nothing can be written next to `path`: permissions, read-only and special file systems; only
    trying tells. What runs that were killed left there a day ago is removed."""
    with beside(path) as trial:
        _sweep(trial.parent)


@contextlib.contextmanager
def refused(path: Path, hint: str, field: str | None = None) -> Iterator[None]:
    """An OSError inside ends as a UsageError that `path` cannot be written. field: the setting that names it."""
    try:
        yield
    except OSError as fault:
        name = option(field, printable(path, 100)) if field else printable(path, 100)
        told = f"{name} cannot be written: {reason(fault)}"
        raise UsageError(told, hint) from None


def check_place(path: Path, example: str, field: str = "output") -> bool:
    """Whether there is a file that would be replaced; UsageError, before any work, where none can be written there.
    example: the name of such a file; field: the setting that names the place."""
    hint, name = f"choose another place or name with {option(field)}", option(field, path)
    with refused(path, hint, field):
        if path.is_dir():
            raise UsageError(f"{name} is a folder", hint=f"name a file, such as {path / example}")
        _check_parent(path, hint)
        there = path.exists()  # which also tells of a name too long
        if there and not path.is_file():
            raise UsageError(f"{name} is not a regular file", hint)
        if there and not os.access(path, os.W_OK):
            raise UsageError(f"{name} is write-protected", hint)
        check_writable(path)
    return there


def check_folder(path: Path, example: str, field: str = "output") -> None:
    """UsageError, before any work, where no folder can be made of that name, or in the place of an empty one. example,
    field: as above."""
    hint, name = f"choose another place or name with {option(field)}", option(field, path)
    with refused(path, hint, field):
        if path.is_dir() and (any(path.iterdir()) or path.samefile(".")):
            told = "is a folder with other files in it" if any(path.iterdir()) else "is the folder you are in"
            raise UsageError(f"{name} {told}", hint=f"name a new folder, or a video such as {path / example}")
        if os.path.lexists(path) and not path.is_dir():
            raise UsageError(f"{name} is not a folder", hint)
        _check_parent(path, hint)
        check_writable(path)


def _check_parent(path: Path, hint: str) -> None:
    folder = path.parent
    if not folder.exists():
        raise UsageError(f"the folder {printable(folder)} does not exist", f"mkdir -p {shlex.quote(str(folder))}")
    if not folder.is_dir():
        raise UsageError(f"{printable(folder)} is not a folder", hint)


def is_full(fault: OSError) -> bool:
    """Whether a disk, or its user's share of it, is full."""
    return fault.errno in _FULL


def open_regular(path: Path) -> BufferedReader:
    """A file to read. OSError where it is none: a pipe or a device may keep its reader waiting, or never end."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits; OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """A file to read for libraries that take every name for UTF-8: under a name of its own where it has another."""
    if os.fsencode(path) == str(path).encode("utf-8", "replace"):
        yield path
        return
    with temporary_folder("names") as folder:
        link = folder / f"file{path.suffix}"
        link.symlink_to(path.absolute())
        yield link


def free(path: Path, *others: str) -> Path:
    """The first of `numbered` where nothing is. others: suffixes of files that will be written beside it, whose names
    must be free, too."""
    return next(
        each
        for each in numbered(path)
        if not any(os.path.lexists(each.with_suffix(suffix)) for suffix in (path.suffix, *others))
    )


def safe_name(name: str) -> str:
    """The last part of a model's or preset's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(name).name) or "model"
