"""What is said of a clip that cannot be used."""


class MediaError(Exception):
    """A clip that cannot be used: `reason` is one of the ledger's, the text says what was found."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):  # the default would call the constructor with the text alone
        return type(self), (self.reason, self.detail)
