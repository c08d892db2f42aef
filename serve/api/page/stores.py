"""What people can look at of the server's stores: coverage, failures, and items with all that is known of them.

Nothing is loaded whole, so stores of millions of items can be browsed; each look scans what it needs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serve.api.errors import ApiError, log
from serve.api.page.links import Links, local_media
from serve.api.page.previews import Preview
from store import Column, Failure, MediaItem, Storage, UserError, list_conversations
from store.browse import (
    Record,
    conversations_about,
    count_items,
    find_items,
    items_of,
    record_of,
)
from store.index import open_index
from store.sidecar import FAILURE_CODES, TEXT
from store.verify import column_folders, open_folder
from trainer.checkpoint.info import CheckpointInfo

SHOWN = 50  # items of one look
ABSENT = FAILURE_CODES.index("absent")
Json = dict[str, Any]


class Wanted(BaseModel):
    """Which items are looked for.

    Attributes:
        search: part of their keys.
        start: number from which to go on, as an earlier look told it.
        failed: a column, of whose defects alone the list is made; what a medium lacks by nature is none.
    """

    model_config = ConfigDict(extra="forbid")
    search: str = Field("", max_length=200)
    start: int = Field(0, ge=0, lt=1 << 40)
    failed: str | None = None


class BrowsedStore:
    """A store that people look at.

    Args:
        label: its name at this server.
        url: where it is.
        info: of the checkpoint, whose columns are marked.
        links: to media.
    """

    def __init__(self, label: str, url: str, info: CheckpointInfo, links: Links) -> None:
        self._label, self._info, self._links = label, info, links
        self._storage = Storage(url)

    def overview(self) -> Json:
        """How much of the corpus each column holds, and the names of the conversations."""
        items = count_items(self._storage)
        columns = [self._described(column, items) for column in self._columns()]
        return {
            "store": self._label,
            "items": items,
            "columns": columns,
            "conversations": list_conversations(self._storage),
        }

    def items(self, wanted: Wanted) -> Json:
        """A page of items, or of a column's failures."""
        if wanted.failed is not None:
            return self._failures(wanted, wanted.failed)
        page = find_items(self._storage, wanted.search, wanted.start, SHOWN)
        return {"items": [_row(item) for item in page.items], "next": page.next}

    def item(self, key: str) -> Json:
        """All that the store has about an item, and a link to its file if it is still there."""
        item = self.planned(key)
        path = local_media(item)
        return {
            **_row(item),
            "bytes": item.bytes,
            "start": item.start,
            "end": item.end,
            "url": self._links.make(self._label, key) if path and path.is_file() else None,
            "columns": [self._about(item, column) for column in self._columns()],
            "conversations": [
                {"name": name, "id": talk.id, "turns": [vars(turn) for turn in talk.turns]}
                for name in list_conversations(self._storage)
                for talk in conversations_about(self._storage, name, key)
            ],
        }

    def planned(self, key: str) -> MediaItem:
        """An item of the plan.

        Raises:
            ApiError: there is none of that key.
        """
        if item := items_of(self._storage, [key]).get(key):
            return item
        raise ApiError(404, f"store {self._label} has no such item", code="item_not_found")

    def known(self, item: MediaItem) -> Preview:
        """A preview by the checkpoint's columns alone, without pictures and peaks."""
        preview: Preview = {"kind": item.kind, "sight": None, "sound": None, "failures": {}}
        for column in self._columns():
            sense = column.spec.modality
            if column.spec != self._info.columns.get(sense):
                continue
            record = record_of(column, item)
            if isinstance(record, Failure):
                preview["failures"][sense] = {"code": record.code, "reason": _reason(record, item)}
            elif record and sense == "visual":
                times: Any = record.facts.get("times", [])
                step = max(1, len(times) // self._info.frames)
                preview["sight"] = {"pictures": [], "index": [], "times": times[::step]}
            elif record:
                seconds = record.facts.get("seconds")
                preview["sound"] = {"peaks": [], "seconds": seconds, "segments": self._info.segments}
        return preview

    def _columns(self) -> Iterator[Column]:
        """The columns that can be opened; of the others the log has the reason."""
        for name in column_folders(self._storage, None):
            try:
                yield open_folder(self._storage, name)
            except UserError as error:
                log.error("a column cannot be shown: %s", error)

    def _described(self, column: Column, items: int) -> Json:
        spec = column.spec
        described: Json = {
            "name": column.name,
            "modality": spec.modality,
            "is_read": spec == self._info.columns.get(spec.modality),
            "is_text": any(feature.dtype == TEXT for feature in spec.features.values()),
        }
        try:
            index = open_index(column)
        except UserError as error:
            log.error("a column cannot be counted: %s", error)
            return described | {"damaged": True}
        absent = int(np.sum(index.codes() == ABSENT))
        counts = {"usable": len(index), "absent": absent, "failed": len(index.failed) - absent}
        return described | counts | {"missing": items - sum(counts.values()), "bytes": index.tar_bytes}

    def _failures(self, wanted: Wanted, name: str) -> Json:
        column = next((column for column in self._columns() if column.name == name), None)
        if column is None:
            raise ApiError(404, f"store {self._label} has no such column", "failed", "column_not_found")
        search = wanted.search.lower()
        index = open_index(column)
        defects = len(index) + np.flatnonzero(index.codes() != ABSENT)
        rows = [row for row in defects.tolist() if search in index.key(row).lower()]
        end = wanted.start + SHOWN
        shown = [index.failure(row) for row in rows[wanted.start : end]]
        items = items_of(self._storage, [failure.key for failure in shown])
        found = [
            {**_row(items[failure.key]), "code": failure.code, "reason": _reason(failure, items[failure.key])}
            for failure in shown
            if failure.key in items
        ]
        return {"items": found, "next": end if end < len(rows) else None}

    def _about(self, item: MediaItem, column: Column) -> Json:
        """What a column has about an item."""
        about: Json = {"name": column.name, "modality": column.spec.modality}
        try:
            record = record_of(column, item)
        except UserError as error:
            log.error("an item cannot be shown: %s", error)
            return about | {"state": "damaged"}
        if isinstance(record, Record):
            return about | {"state": "usable", "texts": record.texts, "facts": record.facts}
        if record is None:
            return about | {"state": "missing"}
        state = "absent" if record.code == "absent" else "failed"
        return about | {"state": state, "code": record.code, "reason": _reason(record, item)}


def _row(item: MediaItem) -> Json:
    return {"key": item.key, "kind": item.kind, "name": _name(item)}


def _name(item: MediaItem) -> str:
    """The name of an item's file, without where it lies."""
    name = item.uri.rstrip("/").rpartition("/")[2]
    return name.encode(errors="backslashreplace").decode()


def _reason(failure: Failure, item: MediaItem) -> str:
    """Why an item failed, without where its file lies."""
    return failure.reason.replace(item.uri, _name(item))
