"""`avllm featurize plan`: read sources into a store's corpus plan and conversations."""

import contextlib
import gc
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer

from featurize.leaks import warn
from featurize.sources import Source, read_sources
from featurize.sources.report import JoinReport, join, show
from featurize.sources.spool import Spool
from store import Corpus, DamagedError, Outline, Part, Storage, UserError, list_conversations
from store.console import console
from store.conversation import FOLDER, SCHEMA, WRITTEN_AT_ONCE, save_rows
from store.hashes import HashIndex, hash_keys
from store.table import opened_table

Store = Annotated[str, typer.Option("--store", help="The store: a folder or an fsspec URL.")]


def plan(
    store: Store,
    sources: Annotated[
        list[str], typer.Argument(help="Folders of media, annotation files, or folders of these.", show_default=False)
    ],
    name: Annotated[str | None, typer.Option(help="Name of the conversations; by default the file's stem.")] = None,
    media_root: Annotated[str | None, typer.Option(help="Where media paths begin and named files are found.")] = None,
    format: Annotated[str | None, typer.Option(help="Format of the files; by default recognised.")] = None,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Items in a shard, for items planned now; by default 4 to 256.")
    ] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="Plan even if no file can be seen from here.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Open every file's header, and look for copies.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write the join report with all names here, as JSON.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be planned; write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first record that cannot be used.")] = False,
    fps: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, help="Stills a second; makes a film of each folder of numbered stills."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What captions of a list answer; by default by kind.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let go of stored conversations that the sources no longer have.")
    ] = False,
) -> None:
    """Add media files to the corpus plan, and conversations to the store. Nothing that was planned moves."""
    gc.disable()  # millions of small objects and no cycles: garbage collection would take half of the time
    storage = Storage(store)
    if storage.local and Path(store).is_file():
        raise UserError(f"--store {store}: a file; expected a folder or an fsspec URL")
    if name and ("/" in name or name.startswith(".")):
        raise UserError(f"--name {name}: expected a name without slashes, which does not begin with a dot")
    if report:
        _check_report(report)
    if media_root and "://" not in media_root and not Path(media_root).is_dir():
        raise UserError(f"--media-root {media_root}: no such folder; expected one, or an fsspec URL")
    read = read_sources(sources, media_root, format, instruction=instruction, strict=strict, fps=fps)
    reports = join(read, probe)
    show(reports)
    if report:
        report.write_text(json.dumps([asdict(joined) for joined in reports], indent=1))
    for joined in reports:
        _check_seen(joined, unseen)
    if not any(source.records for source in read):
        folders = all(source.format == "folder" for source in read)
        lack = "no media files; expected names that end in .mp4, .mkv, .wav, .jpg or so" if folders else "no records"
        raise UserError(f"{', '.join(sources)}: {lack}")
    with contextlib.nullcontext() if dry_run else storage.lock():
        planned = by_split(read, name)
        for stored, portions in planned.items() if not replace else ():
            _check_kept(storage, stored, portions)
        _plan(storage, read, planned, shard_size, probe=probe, write=not dry_run)


def _check_report(path: Path) -> None:
    """Refuse a report path that cannot be written before planning, not after."""
    if not path.parent.is_dir():
        raise UserError(f"--report {path}: no folder {path.parent}; make it first, or name a file in one that is there")
    if path.is_dir():
        raise UserError(f"--report {path}: a folder; expected the name of a file to write")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--report {path}: may not be written; name a file in a folder of your own")


def _check_seen(report: JoinReport, unseen: bool) -> None:
    if report.missing and len(report.missing) == report.media and not unseen:
        raise UserError(
            f"{report.source}: none of its media files was found, for example {report.missing[0]}; "
            "set --media-root, or --unseen to go on"
        )


def _plan(
    storage: Storage,
    sources: list[Source],
    planned: dict[str, list["Portion"]],
    shard_size: int | None,
    *,
    probe: bool,
    write: bool,
) -> None:
    corpus = Corpus.load(storage) if storage.exists("corpus.parquet") else Corpus()
    stripped = corpus.stripped
    for source in sources:
        added = corpus.append(source.records.media(), shard_size)
        if added and stripped:
            raise UserError(
                f"{storage.url}: came by push --strip-uris and names media without their folder, so files planned here "
                "would stand in it twice; plan them into a new store and train on both, or into the store it came from"
            )
        console.print(f"{source.url}: {added} new media files{'' if write else ' would be added'}", markup=False)
    kinds = ", ".join(f"{count} {kind}" for kind, count in corpus.kinds.items())
    console.print(
        f"{storage.url}: {'' if write else 'would have '}{len(corpus)} items in {len(corpus.shards)} shards ({kinds})",
        markup=False,
    )
    if unseen := corpus.unseen:
        console.print(
            f"{storage.url}: {unseen} of them not found when last planned; their conversations stay, "
            "and training leaves them out until the files are there and featurized",
            markup=False,
        )
    warn(storage, corpus, {stored: _outline(portions, corpus) for stored, portions in planned.items()}, probe)
    if write:
        corpus.save(storage)
    for stored, portions in planned.items():
        if write:
            rows = (_rows(batch, corpus) for portion in portions for batch in portion.batches())
            save_rows(storage, stored, rows)
        count = sum(portion.count for portion in portions)
        console.print(f"conversations {stored}: {count} {'' if write else 'would be '}written", markup=False)


def _check_kept(storage: Storage, name: str, portions: Sequence["Portion"]) -> None:
    """Refuse to replace stored conversations if some of their ids would be lost; damaged ones may be replaced."""
    if name not in list_conversations(storage):
        return
    planned = HashIndex()
    for batch in (batch for portion in portions for batch in portion.batches()):
        planned.add(hash_keys(batch.column("id")), np.zeros(len(batch), np.int64))
    stored = gone = 0
    with contextlib.suppress(DamagedError), opened_table(storage, f"{FOLDER}/{name}.parquet", SCHEMA) as table:
        for batch in table.iter_batches(WRITTEN_AT_ONCE, columns=["id"], use_threads=False):
            stored += len(batch)
            gone += int((planned.find(hash_keys(batch.column(0))) < 0).sum())
    if gone:
        urls = ", ".join(dict.fromkeys(portion.url for portion in portions))
        raise UserError(
            f"conversations {name}: {gone} of the {stored} that are there are not in {urls}; "
            "--name NAME keeps both, --replace lets them go"
        )


@dataclass(frozen=True)
class Portion:
    """The conversations of a source that have one split.

    Attributes:
        url: of the source.
        records: of the source.
        split: the split, None for those without one.
        count: how many they are.
    """

    url: str
    records: Spool
    split: str | None
    count: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Their rows of `spool.SCHEMA`."""
        for batch in self.records.conversations():
            splits = batch.column("split")
            yield batch.filter(
                splits.is_null() if self.split is None else pc.equal(splits, self.split).fill_null(False)
            )


def by_split(sources: Iterable[Source], name: str | None) -> dict[str, list[Portion]]:
    """Conversations by the name they are stored under: `name` or the source's, plus the split if there are several.

    Training so never reads a test split by accident: VGGSound's one file becomes `vggsound-train` and `vggsound-test`.
    """
    by_name: dict[str, dict[str | None, list[Portion]]] = {}
    for source in sources:
        batches = source.records.conversations()
        counts = Counter(split for batch in batches for split in batch.column("split").to_pylist())
        splits = by_name.setdefault(name or source.name, {})
        for split, count in counts.items():
            splits.setdefault(split, []).append(Portion(source.url, source.records, split, count))
    return {
        f"{stem}-{split}" if split and len(splits) > 1 else stem: portions
        for stem, splits in by_name.items()
        for split, portions in splits.items()
    }


def _outline(portions: Sequence[Portion], corpus: Corpus) -> Outline:
    def keys() -> Iterator[str]:
        for portion in portions:
            for batch in portion.batches():
                yield from filter(None, _keys(batch, corpus))

    return Outline(keys, lambda: filter(None, (portion.split for portion in portions)))


def _rows(batch: pa.RecordBatch, corpus: Corpus) -> pa.RecordBatch:
    """Rows of conversations from rows of a spool."""
    columns = {"key": pa.array(_keys(batch, corpus), pa.string())}
    arrays = [columns.get(field.name) or batch.column(field.name) for field in SCHEMA]
    return pa.record_batch(arrays, schema=SCHEMA)


def _keys(batch: pa.RecordBatch, corpus: Corpus) -> list[str | None]:
    """The key of each record's file; None for a record without one."""
    columns = (batch.column(name).to_pylist() for name in ("uri", "start", "end"))
    parts = [Part(uri, start, end) if uri is not None else None for uri, start, end in zip(*columns, strict=True)]
    found = iter(corpus.keys_of([part for part in parts if part]))
    return [next(found) if part else None for part in parts]
