"""The head of a Markdown page of measurements."""

from __future__ import annotations

import textwrap


def page(title: str, *paragraphs: str) -> str:
    """Title and paragraphs, in lines of 118 characters; what follows begins on a line of its own."""
    filled = (textwrap.fill(" ".join(part.split()), 118, break_on_hyphens=False) for part in paragraphs)
    return "\n\n".join([f"# {title}", *filled, ""])
