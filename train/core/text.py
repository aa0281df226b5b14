"""Text from outside for terminals and pictures: on one line, short, and nothing in it that moves a cursor."""

from typing import Any


def one_line(text: Any, limit: int = 200) -> str:
    """The first `most` characters of a text, with `?` for those that cannot be printed."""
    return "".join(character if character.isprintable() else "?" for character in str(text)[:limit])
