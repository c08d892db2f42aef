"""Review: a table of samples for a person, whose decisions take the place of what rules and judge said.

`keep` does not bring back an item that repeats another, or one for which a full cell has no place. A decision stands
until the other one is given for the same text: to empty it in a later table undoes nothing.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from curate.deciding import Review
from curate.ranking import shuffled
from curate.run import FOLDER, Curation
from store import UserError

FIELDS = ("id", "written", "outcome", "reason", "captions", "question", "answer", "decision")
DECISIONS: tuple[Review, ...] = ("keep", "drop")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which spreadsheets begin a formula


def review_csv(rows: Sequence[dict[str, Any]], count: int, seed: int) -> str:
    """Some kept and as many dropped items of the verdicts as CSV, with an empty column `decision`.

    Args:
        rows: of the verdicts.
        count: of each outcome.
        seed: of the draw.
    """
    written = {row["id"]: row for row in rows if row["turns"]}
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(FIELDS)
    for outcome in ("kept", "dropped"):
        names = [name for name, row in written.items() if row["outcome"] == outcome]
        for name in sorted(shuffled(names, seed, "review")[:count]):
            table.writerow(map(_cell, _fields(written[name])))
    return out.getvalue()


def _fields(row: dict[str, Any]) -> list[str]:
    turns = row["turns"]
    return [
        row["id"], written_by(row), row["outcome"], row["reason"], row["captions"],
        "\n".join(turn["instruction"] for turn in turns), "\n".join(turn["response"] for turn in turns), "",
    ]  # fmt: skip


def written_by(row: dict[str, Any]) -> str:
    """The digest of the request that wrote an item."""
    cell = f"{row['task']}-{row['modality']}:"
    return next((receipt["digest"] for receipt in row["receipts"] if receipt["template"].startswith(cell)), "")


def _cell(text: str) -> str:
    """A text that no spreadsheet runs."""
    return f"'{text}" if text.startswith(FORMULA) else text


def import_reviews(curation: Curation, path: Path, known: dict[str, Review]) -> dict[str, Review]:
    """Add the decisions of a table to those that are known; return all.

    Raises:
        UserError: the file is no such table, or a decision is neither keep nor drop.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    decided = dict(known)
    for number, row in enumerate(rows, 2):
        if not {"written", "decision"} <= row.keys():
            raise UserError(f"{path}: expected a table with the fields {', '.join(FIELDS)}")
        decision = (row["decision"] or "").strip().lower()
        if decision and decision not in DECISIONS:
            raise UserError(f"{path}: row {number}: field 'decision': {decision!r}; accepted: keep, drop, or nothing")
        if decision and row["written"]:
            decided[row["written"]] = cast(Review, decision)
    text = json.dumps(decided, indent=0, sort_keys=True)
    curation.storage.write(f"{FOLDER}/{curation.settings.name}/reviews.json", text.encode())
    return decided
