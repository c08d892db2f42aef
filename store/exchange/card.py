"""A data card: what a store holds, with digests and provenance, as the README.md of a dataset repository.

The card depends only on the store and its folder's name, the licence, the version of avllm and an old README.md: it
contains no time, no host and no path of a media file.
"""

import hashlib
import importlib.metadata
import json
import re
from typing import Any

import yaml
from pydantic import JsonValue

from store.column import Column, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.conversation import MODALITIES
from store.corpus import Corpus
from store.errors import UserError
from store.exchange.transfer import CARD
from store.items import CORPUS
from store.mapped import count_modalities
from store.shard import shard_name
from store.sidecar import TEXT
from store.spec import canonical_json
from store.storage import Storage
from store.verify import column_stats

BEGIN = "<!-- what follows is written by `store card`; text outside these marks is kept -->"
END = "<!-- here ends what `store card` writes -->"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
READING = """## How to read it

The tars are plain WebDataset; each holds `<key>.<feature>.npy` (`.json` for texts) and `<key>.json`:

```python
import webdataset

for sample in webdataset.WebDataset("columns/{column}/000000.tar", shardshuffle=False).decode():
    print(sample["__key__"], [name for name in sample if name.endswith(".npy")])
```

By key, with every array's checksum compared:

```python
from store import ColumnReader, Storage, open_column

reader = ColumnReader(open_column(Storage("."), "{column}"))
print({{name: array.shape for name, array in reader.read(reader.keys()[0]).items()}})
```

`avllm store verify .` compares every byte with the checksums in the sidecars.
"""


def store_digest(storage: Storage, corpus_table: bytes) -> str:
    """SHA-256 over a store's plan, conversations, specs and sidecars; sidecars hold checksums, so tars are covered.

    Args:
        corpus_table: bytes of the corpus plan, as stored or as sent.
    """
    whole = hashlib.sha256()
    _line(whole, CORPUS, corpus_table)
    for name in storage.names(CONVERSATIONS):
        _line(whole, f"{CONVERSATIONS}/{name}", storage.read(f"{CONVERSATIONS}/{name}"))
    for column in list_columns(storage):
        _line(whole, column.name, canonical_json(column.spec.model_dump(mode="json")))
        for shard in column.shards():
            name = column.path(shard_name(shard, "json"))
            _line(whole, name, storage.read(name))
    return whole.hexdigest()


def make_card(storage: Storage, licence: str | None, corpus_table: bytes | None = None) -> bytes:
    """The content of the store's README.md; text outside our marks in an existing README.md is kept.

    Args:
        licence: a licence's short name, such as "cc-by-4.0"; None keeps the existing one.
        corpus_table: bytes of the corpus plan to use in the digest, if not the store's own.

    Raises:
        UserError: the header of the existing README.md is not a YAML mapping.
    """
    old = storage.read(CARD).decode() if storage.exists(CARD) else ""
    header, body = _split(old, storage.where(CARD))
    corpus = Corpus.load(storage)
    header = _header(storage, corpus, header) | ({"license": licence} if licence else {})
    ours = f"{BEGIN}\n\n{_describe(storage, corpus, header, corpus_table or storage.read(CORPUS))}\n{END}"
    if BEGIN in body and END in body:
        before, after = body.partition(BEGIN)[0], body.partition(END)[2]
        body = f"{before}{ours}{after}"
    else:
        title = body or f"# {header['pretty_name']}\n"
        body = f"{title}\n{ours}\n"
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body.lstrip()}".encode()


def _line(whole: Any, name: str, content: bytes) -> None:
    whole.update(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())


def _split(text: str, where: str) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML header and the rest."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if not match:
        return {}, text
    try:
        header = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise UserError(f"{where}: its header is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(header, dict):
        raise UserError(f"{where}: its header is no YAML mapping")
    return header, text[match.end() :]


def _header(storage: Storage, corpus: Corpus, old: dict[str, Any]) -> dict[str, Any]:
    """The YAML header: existing fields are kept, except those computed from the store."""
    names = storage.names(CONVERSATIONS)
    talks = [{"config_name": n.removesuffix(".parquet"), "data_files": f"{CONVERSATIONS}/{n}"} for n in names]
    size = next((name for bound, name in SIZES if len(corpus) < bound), "n>1M")
    return {
        "pretty_name": storage.url.rsplit("/", 1)[-1],
        "tags": ["webdataset", "precomputed-features", "audio-visual"],
        **old,
        "size_categories": [size],
        **({"configs": talks} if talks else {}),
    }


def _describe(storage: Storage, corpus: Corpus, header: dict[str, Any], corpus_table: bytes) -> str:
    columns = list_columns(storage)
    parts = [
        f"Features of {len(corpus)} media files ({', '.join(f'{n} {kind}' for kind, n in corpus.kinds.items())}) in "
        f"{len(corpus.shards)} shards, computed once with frozen encoders. The media themselves are not part of it.",
        f"Licence: {header.get('license', 'not stated')}.",
        "## Columns",
        *(_column(column, corpus) for column in columns),
        "## Conversations",
        _conversations(storage),
        "## Provenance",
        f"Digest of the store: `{store_digest(storage, corpus_table)}`: SHA-256 over the SHA-256 and name of the "
        "corpus plan, the conversations, the specs and the sidecars, which hold the checksum of every tar and array. "
        f"This card was written by avllm {importlib.metadata.version('avllm')}.",
    ]
    if columns:
        shown = next((column for column in columns if _holds_numbers(column)), columns[0])
        parts.append(READING.format(column=shown.name).rstrip())
    return "\n\n".join(parts) + "\n"


def _holds_numbers(column: Column) -> bool:
    return any(feature.dtype != TEXT for feature in column.spec.features.values())


def _column(column: Column, corpus: Corpus) -> str:
    stats = column_stats(column, corpus)
    failed = ", ".join(f"{count} {code}" for code, count in sorted(stats.by_code.items())) or "none"
    features = [
        f"| `{name}` | {' x '.join('*' if n is None else str(n) for n in feature.shape)} | {feature.dtype} |"
        for name, feature in column.spec.features.items()
    ]
    numerics = json.dumps(_public(column.spec.numerics), indent=2, sort_keys=True, ensure_ascii=False)
    return "\n".join(
        [
            f"### {column.name}",
            "",
            f"{column.spec.modality}; {stats.shards} of {stats.planned} shards; {stats.usable} items usable; "
            f"not usable: {failed}; {stats.bytes / 1e9:.3f} GB. Fingerprint of the spec: `{column.spec.fingerprint}`.",
            "",
            "| feature | shape | dtype |",
            "| --- | --- | --- |",
            *features,
            "",
            "```json",
            numerics,
            "```",
        ]
    )


def _public(value: JsonValue) -> JsonValue:
    """Shorten each absolute path or URL in a value to its last component."""
    if isinstance(value, dict):
        return {name: _public(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if isinstance(value, str) and (value.startswith(("/", "~")) or "://" in value):
        return value.rstrip("/").rsplit("/", 1)[-1]
    return value


def _conversations(storage: Storage) -> str:
    names = [name.removesuffix(".parquet") for name in storage.names(CONVERSATIONS)]
    if not names:
        return "None."
    rows = [f"| name | conversations | {' | '.join(MODALITIES)} |", "| --- " * (2 + len(MODALITIES)) + "|"]
    for name in names:
        counts = count_modalities(storage, name)
        rows.append(f"| {name} | {counts.total()} | {' | '.join(str(counts[m]) for m in MODALITIES)} |")
    return "\n".join(rows)
