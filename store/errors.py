"""Errors the user can fix: one line, no traceback."""

import re
import shlex

SHARD = re.compile(r"(.+?)/columns/[^/]+/\d{6,}\.(?:tar|json): ")  # how a message about a shard's file starts


class UserError(ValueError):
    """Bad input or configuration. The message names the file, the field and the accepted values."""


class DamagedError(UserError):
    """Stored bytes do not match the checksum taken when they were written."""

    @property
    def remedy(self) -> str:
        """The command that repairs the shard, or an empty string if the message is not about a shard's file."""
        match = SHARD.match(str(self))
        return f"python -m featurize repair {shlex.quote(match[1])}" if match else ""
