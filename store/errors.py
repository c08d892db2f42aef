"""Errors that are the user's to mend: one clear line, no traceback."""


class UserError(ValueError):
    """Bad input or configuration. The message names the file, the field and what would be accepted."""


class DamagedError(UserError):
    """Stored bytes differ from the checksum that was taken when they were written."""
