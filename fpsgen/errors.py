"""What can go wrong, in words for the person at the terminal.

An error holds one sentence and, as `hint`, what to do about it. The CLI prints both and leaves with the
error's exit code; nobody else needs to know how.
"""

from __future__ import annotations


class FpsgenError(Exception):
    """Base of every error that fpsgen explains instead of showing a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.hint = hint


class Stopped(FpsgenError):
    """Ended by its user, with something to say about what is kept."""

    exit_code = 130


class UsageError(FpsgenError):
    """The user asked for something that cannot be: a size, an option, a file."""

    exit_code = 2


class ModelError(UsageError):
    """A model is missing, incomplete or not one that fpsgen runs."""


class DownloadError(FpsgenError):
    """The hub, or the way to it, failed; what has arrived is kept."""


class RenderError(FpsgenError):
    """Work that should have succeeded did not: the encoder failed, values were not finite."""
