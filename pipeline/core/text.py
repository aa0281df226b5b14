"""Untrusted text made safe for terminals and figures: one short line without control characters."""

from typing import Any


def one_line(text: Any, limit: int = 200) -> str:
    """Return the first `limit` characters of the text: white space as blanks, `?` for what cannot be printed."""
    shown = str(text)[:limit]
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in shown)
