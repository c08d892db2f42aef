"""Errors the user can fix: one line, no traceback."""

import re
import shlex

SHARD = re.compile(r"(.+?)/columns/[^/]+/\d{6,}\.(?:tar|json): ")  # begins a message about a shard's file


class UserError(ValueError):
    """Bad input or configuration. The message names the file, the field and what would be accepted."""


class DamagedError(UserError):
    """Stored bytes differ from the checksum that was taken when they were written."""

    @property
    def remedy(self) -> str:
        """The command that mends it, if the message is about a file of a shard; else nothing."""
        found = SHARD.match(str(self))
        return f"python -m featurize repair {shlex.quote(found[1])}" if found else ""
