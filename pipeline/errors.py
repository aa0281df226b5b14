"""The one exception that a user may see: a sentence that says what is wrong, where, and what to do."""


class AvpipeError(Exception):
    """A request that cannot be carried out; the command line prints its text and ends with `exit_code`."""

    exit_code = 1
