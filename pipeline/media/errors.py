"""The error for an unusable clip."""


class MediaError(Exception):
    """An unusable clip: `reason` is one of the ledger's, `detail` says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # the default would call the constructor with only the message
        return type(self), (self.reason, self.detail)
