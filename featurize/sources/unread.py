"""Fields that no reader takes: if a conversation lacks its file or bounds, one of them may be a typo."""

from collections import Counter

from featurize.sources.document import Document
from featurize.sources.llava import CHATS
from featurize.sources.record import Record
from featurize.sources.table import FIELDS
from store import Part

BOUNDS = frozenset(("start", "end", "begin", "finish", "from", "to", "timestamp", "timestamps"))
SUFFIXES = ("", "time", "sec", "secs", "second", "seconds", "s", "ts")


class Unread:
    """Counts records with a field that no reader takes.

    In chats, records that name no file count; in a list, all records if some become no conversation. Fields named like
    the bounds of a part count in both, where a record is about a whole file.
    """

    def __init__(self, format: str) -> None:
        self._is_list, self._is_chat = format == "list", format in ("llava", "valley", "sharegpt")
        self._bounds, self._names = Counter[str](), Counter[str]()
        self._some_silent = False

    def read(self, document: Document) -> None:
        """Count the fields of a document, or of a piece of one."""
        if self._is_list:
            self._names.update(name for record in document.objects for name in record if name not in FIELDS)

    def kept(self, record: Record) -> None:
        """Count the fields of a record that was read."""
        self._some_silent |= not record.turns
        if _is_whole(record):
            self._bounds.update(filter(_is_bound, record.meta))
        if self._is_chat and record.media is None:
            self._names.update(name for name in record.meta if name not in CHATS)

    @property
    def counts(self) -> dict[str, int]:
        """Number of records by field name, most frequent first."""
        if not (self._is_list or self._is_chat):
            return {}
        names = self._names if self._is_chat or self._some_silent else Counter[str]()
        return dict((names | self._bounds).most_common())


def _is_whole(record: Record) -> bool:
    return record.media is not None and record.media.part == Part(record.media.uri)


def _is_bound(name: str) -> bool:
    word, _, rest = name.lower().replace("-", "_").partition("_")
    return word in BOUNDS and rest in SUFFIXES
