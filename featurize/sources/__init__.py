"""Every form in which users bring media and conversations; nothing downstream knows these forms."""

import json
from pathlib import PurePosixPath
from typing import Any

import fsspec

from featurize.sources.folder import read_folder
from featurize.sources.llava import Record, is_llava, read_llava, split_tokens
from featurize.sources.table import parse_json_lines, read_csv, read_rows
from store import Candidate, UserError

__all__ = ["Record", "read_source", "split_tokens"]


def read_source(url: str, media_root: str | None) -> tuple[list[Candidate], list[Record]]:
    """Read a folder, a CSV or JSON lines list, or LLaVA-style JSON: media files, and conversations about them.

    Args:
        url: path or fsspec URL.
        media_root: where relative media paths begin; by default the folder of the file that names them.

    Raises:
        UserError: there is nothing at `url`, or it has no form that we know.
    """
    fs, path = fsspec.core.url_to_fs(url)
    if fs.isdir(path):
        return read_folder(url), []
    if not fs.exists(path):
        raise UserError(f"{url}: no such file or folder")
    root = media_root or (url if "://" in url else path).rsplit("/", 1)[0]
    text = fs.cat_file(path).decode("utf-8-sig")
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".csv":
        return read_csv(text, url, root), []
    if suffix in (".jsonl", ".json"):
        values = parse_json_lines(text, url) if suffix == ".jsonl" else _parse_json(text, url)
        if is_llava(values):
            records = read_llava(values, url, root)
            return [record.media for record in records if record.media], records
        if isinstance(values, list):
            return read_rows(values, url, root), []
    raise UserError(f"{url}: expected a folder, a .csv or .jsonl list with a column 'path', or LLaVA-style .json")


def _parse_json(text: str, url: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{url}: not JSON: {error}") from None
