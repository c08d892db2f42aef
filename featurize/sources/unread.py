"""Fields that no reader takes: if a conversation lacks its file or bounds, one of them may be a typo."""

from collections import Counter
from collections.abc import Sequence

from featurize.sources.document import Document
from featurize.sources.llava import CHATS
from featurize.sources.record import Record
from featurize.sources.table import FIELDS
from store import Part

BOUNDS = frozenset(("start", "end", "begin", "finish", "from", "to", "timestamp", "timestamps"))
SUFFIXES = ("", "time", "sec", "secs", "second", "seconds", "s", "ts")


def unread(document: Document, format: str, records: Sequence[Record]) -> dict[str, int]:
    """Number of records with a field that no reader takes, by field name, most frequent first.

    In chats, records that name no file count; in a list, all records if some become no conversation. Fields named like
    the bounds of a part count in both, where a record is about a whole file.
    """
    bounds = Counter(name for record in records if _is_whole(record) for name in record.meta if _is_bound(name))
    if format == "list":
        count = sum(not record.turns for record in records)
        names = [name for record in document.objects for name in record if name not in FIELDS] if count else []
        return dict((Counter(names) | bounds).most_common())
    if format not in ("llava", "valley", "sharegpt"):
        return {}
    bare = (record for record in records if record.media is None)
    names = [name for record in bare for name in record.meta if name not in CHATS]
    return dict((Counter(names) | bounds).most_common())


def _is_whole(record: Record) -> bool:
    return record.media is not None and record.media.part == Part(record.media.uri)


def _is_bound(name: str) -> bool:
    word, _, rest = name.lower().replace("-", "_").partition("_")
    return word in BOUNDS and rest in SUFFIXES
