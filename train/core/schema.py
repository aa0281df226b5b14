"""Types for validating untrusted tables, once, where they are read."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from avpipe.pipeline.core.text import one_line


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains non-printable characters")
    return text


Count = Annotated[int, Field(ge=0, lt=2**63)]
PlainText = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_printable)]
"""Text that is shown in terminals and web pages."""


def first_fault(error: ValidationError) -> str:
    """Return the location of the first validation error and its reason, in a few words."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    location = ".".join(str(step)[:40] for step in first["loc"])
    return one_line(f"{location}: {first['msg']}")
