"""Fields that no reader takes: where a conversation lacks its file, one of them may be its field, mistyped."""

from collections import Counter
from collections.abc import Sequence

from featurize.sources.document import Document
from featurize.sources.record import Record
from featurize.sources.table import FIELDS

# Beside what their readers take, data sets of the LLaVA and ShareGPT forms have these.
CHATS = frozenset([
    "source", "system", "tools", "model", "split", "data_source", "dataset", "task", "type", "category", "duration",
    "length", "objects", "question_id", "width", "height", "score", "meta", "metadata",
])  # fmt: skip


def unread(document: Document, format: str, records: Sequence[Record]) -> dict[str, int]:
    """How many records hold a field that nobody takes, by its name, most first.

    Of conversations, those records count that name no file; of a list, all that become no conversation.
    """
    if format == "list":
        count = sum(not record.turns for record in records)
        names = [name for record in document.objects for name in record if name not in FIELDS] if count else []
        return dict(Counter(names).most_common())
    if format not in ("llava", "valley", "sharegpt"):
        return {}
    bare = (record for record in records if record.media is None)
    return dict(Counter(name for record in bare for name in record.meta if name not in CHATS).most_common())
