"""Errors the user can fix: one line, no traceback."""

import shlex


class UserError(ValueError):
    """Bad input or configuration. The message names the file, the field and the accepted values."""


class DamagedError(UserError):
    """Stored bytes are not those that were written, a file is missing, or a shard does not fit the plan or the spec.

    Attributes:
        store: URL of the store; empty unless a shard's file is damaged; then column and shard are set too.
        column: folder name of the shard's column.
        shard: number of the shard.
    """

    store: str = ""
    column: str = ""
    shard: int | None = None

    @property
    def remedy(self) -> str:
        """The command that repairs the shard, or an empty string if no shard's file is damaged."""
        return f"avllm featurize repair {shlex.quote(self.store)}" if self.store else ""
