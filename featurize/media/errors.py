"""Why a media file cannot be used: a code to count by, and a reason to read."""

from store import FailureCode


class MediaError(Exception):
    """A file, or one of its streams, cannot be used. It becomes a record in the sidecar."""

    def __init__(self, code: FailureCode, reason: str) -> None:
        reason = reason.encode(errors="backslashreplace").decode()  # it may name a file whose name is not UTF-8
        super().__init__(reason)
        self.code: FailureCode = code
        self.reason = reason
