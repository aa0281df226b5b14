"""Untrusted text made safe for terminals and figures: one short line without control characters."""

from typing import Any


def one_line(text: Any, limit: int = 200) -> str:
    """Return the first `limit` characters of the text, with `?` in place of those that cannot be printed."""
    return "".join(character if character.isprintable() else "?" for character in str(text)[:limit])
