"""Errors the user can fix: one line, no traceback."""

import shlex


class UserError(ValueError):
    """Bad input or configuration. The message names the file, the field and the accepted values."""


class DamagedError(UserError):
    """Stored bytes do not match the checksum taken when they were written.

    Attributes:
        store: URL of the store; empty if no shard's file is damaged, as are the others then.
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
