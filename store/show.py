"""`avllm store show STORE KEY`: what a store knows of one item."""

import difflib
import json
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

from store.arrivals import make_key
from store.browse import conversations_about, count_items, find_items, items_of, record_of
from store.console import console, make_table, size_text
from store.conversation import list_conversations
from store.errors import DamagedError, UserError
from store.items import MediaItem, check_is_store
from store.reader import COMPARED
from store.sidecar import Failure
from store.storage import Storage
from store.verify import column_folders, open_folder

SHOWN = 20  # conversations of a file
FACT_WIDTH = 100  # characters of a fact


def find_item(storage: Storage, key: str) -> MediaItem:
    """The item of a key.

    Raises:
        UserError: there is none; names some whose keys, or files, contain it or are like it.
    """
    check_is_store(storage)
    if item := items_of(storage, [key]).get(key):
        return item
    like = [item.key for item in find_items(storage, make_key(key), limit=5).items]
    if not like and count_items(storage) <= COMPARED:
        keys = [item.key for item in find_items(storage, limit=COMPARED).items]
        like = difflib.get_close_matches(make_key(key), keys)
    known = f"there are: {', '.join(like)}" if like else "avllm store keys lists them"
    raise UserError(f"{storage.url}: no item has the key {key!r}; {known}")


def describe(storage: Storage, item: MediaItem) -> dict[str, Any]:
    """An item as a JSON object: its row of the plan, what each column has of it, conversations about it.

    Raises:
        UserError: conversations cannot be read.
    """
    columns = {name: _known(storage, name, item) for name in column_folders(storage, None)}
    talks = {name: conversations_about(storage, name, item.key, SHOWN) for name in list_conversations(storage)}
    return {
        "item": asdict(item),
        "columns": columns,
        "conversations": {name: [asdict(talk) for talk in found] for name, found in talks.items() if found},
    }


def say(storage: Storage, item: MediaItem) -> None:
    """Print what `describe` gives."""
    known = describe(storage, item)
    part = f", seconds {item.start or 0.0} to {'the end' if item.end is None else item.end}" if item.is_part else ""
    size = "" if item.bytes is None else f", {size_text(item.bytes)}"
    console.print(f"{item.key}: {item.kind}{size}{part}, {item.uri}", markup=False)
    table = make_table("column", "array", "shape", "dtype")
    for name, column in known["columns"].items():
        for array, (shape, dtype) in column.get("arrays", {}).items():
            table.add_row(name, array, " x ".join(map(str, shape)), dtype)
        if column["state"] != "usable":
            table.add_row(name, f"{column['state']}{': ' * bool(column.get('reason'))}{column.get('reason', '')}")
    console.print(table)
    for name, column in known["columns"].items():
        for fact, value in column.get("facts", {}).items():
            console.print(f"{name} {fact}: {_short(value)}", markup=False)
        for text, value in column.get("texts", {}).items():
            console.print(f"{name} {text}: {json.dumps(value, ensure_ascii=False)}", markup=False)
    for name, talks in known["conversations"].items():
        console.print(f"conversations {name}: {len(talks)}{' or more' * (len(talks) == SHOWN)}")
        for talk in talks:
            console.print(f"  {talk['id']}", markup=False)
            for turn in talk["turns"]:
                console.print(f"    {turn['modality']}: {turn['instruction']}\n      {turn['response']}", markup=False)


def _known(storage: Storage, name: str, item: MediaItem) -> dict[str, JsonValue]:
    try:
        record = record_of(open_folder(storage, name), item)
    except DamagedError as error:
        return {"state": "damaged", "reason": str(error)}
    if record is None:
        return {"state": "not featurized"}
    if isinstance(record, Failure):
        return {"state": record.code, "reason": record.reason}
    arrays: Any = {array: (entry.shape, entry.dtype) for array, entry in record.arrays.items()}
    return {"state": "usable", "arrays": arrays, "texts": record.texts, "facts": record.facts}


def _short(value: JsonValue) -> str:
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= FACT_WIDTH else line[: FACT_WIDTH - 3] + "..."
