"""`python -m featurize plan | run`: media files to columns of a store."""

import contextlib
import os
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from featurize.report import missing_shards
from featurize.settings import FeaturizeConfig
from featurize.sources import Record, read_source
from store import (
    Candidate,
    Column,
    Conversation,
    Corpus,
    MediaItem,
    Storage,
    UserError,
    column_stats,
    list_columns,
    load_settings,
    open_column,
    save_conversations,
)
from store.console import Meter, console, make_app, run

if TYPE_CHECKING:
    from featurize.cluster import Pool, Task

app = make_app("Run frozen encoders once over media files; keep what they say as columns of a store.")
FAILURES_SHOWN = 20
Store = Annotated[str, typer.Option("--store", help="The store: a folder or an fsspec URL.")]


@app.command()
def plan(
    sources: Annotated[list[str], typer.Argument(help="Folders, .csv / .jsonl lists, LLaVA-style .json.")],
    store: Store,
    name: Annotated[str | None, typer.Option(help="Name of the conversations; by default the file's stem.")] = None,
    media_root: Annotated[str | None, typer.Option(help="Where relative media paths begin.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Items in a shard, for items planned now.")] = 256,
    unseen: Annotated[bool, typer.Option("--unseen", help="Plan even if no file can be seen from here.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be planned; write nothing.")] = False,
) -> None:
    """Add media files to the corpus plan, and conversations to the store. Nothing that was planned moves."""
    storage = Storage(store)
    read = [(source, *read_source(source, media_root)) for source in sources]
    for source, candidates, _ in read:
        _check_seen(source, candidates, unseen)
    if not any(candidates or records for _, candidates, records in read):
        raise UserError(f"{', '.join(sources)}: no media files; known extensions are in featurize/sources/kinds.py")
    with contextlib.nullcontext() if dry_run else storage.lock():
        _plan(storage, read, name, shard_size, write=not dry_run)


def _check_seen(source: str, candidates: list[Candidate], unseen: bool) -> None:
    lost = [candidate.uri for candidate in candidates if candidate.bytes is None]
    if lost and len(lost) == len(candidates) and not unseen:
        raise UserError(
            f"{source}: none of its files is there, first {lost[0]}; set --media-root, or --unseen to go on"
        )
    if lost:
        console.print(f"{source}: not found now: {', '.join(dict.fromkeys(lost[:3]))}{' ...' if lost[3:] else ''}")


def _plan(
    storage: Storage,
    read: list[tuple[str, list[Candidate], list[Record]]],
    name: str | None,
    shard_size: int,
    *,
    write: bool,
) -> None:
    corpus = Corpus.load(storage) if storage.exists("corpus.parquet") else Corpus()
    found: dict[str, list[Record]] = {}
    for source, candidates, records in read:
        new = corpus.append(candidates, shard_size)
        console.print(
            f"{source}: {len({c.uri for c in candidates})} media files, {new} new; {len(records)} conversations"
        )
        if records:
            stem = name or source.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
            found.setdefault(stem, []).extend(records)
    kinds = Counter(item.kind for item in corpus.items)
    unseen = sum(item.bytes is None for item in corpus.items)
    console.print(
        f"{storage.url}: {len(corpus)} items in {len(corpus.shards)} shards "
        f"({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}; {unseen} not found now)"
    )
    if not write:
        return
    corpus.save(storage)
    keys = corpus.key_of_uri
    for stem, records in found.items():
        save_conversations(storage, stem, [_conversation(record, keys) for record in records])
        console.print(f"conversations {stem}: {len(records)} written")


def _conversation(record: Record, keys: dict[str, str]) -> Conversation:
    return Conversation(record.id, keys[record.media.uri] if record.media else None, record.turns, record.meta)


@app.command("run")
def featurize(
    store: Store,
    config: Annotated[str, typer.Option("--config", help="YAML of FeaturizeConfig.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, such as columns.0.batch=64.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Encode shards with failed files again.")] = False,
    only: Annotated[list[int] | None, typer.Option("--shard", help="Look at this shard alone; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing; write nothing.")] = False,
) -> None:
    """Encode what the columns miss. Finished shards are skipped, so the same command goes on after any stop."""
    settings = load_settings(FeaturizeConfig, config, overrides or ())
    storage = Storage(store)
    if storage.local and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not os.path.isabs(store):
        raise UserError(
            f"--store {store}: a submitted job runs in a copy of the folder; give an absolute path or a URL"
        )
    corpus = Corpus.load(storage)
    shards = _chosen(corpus, only)
    if dry_run:
        _say_missing(storage, settings, list(shards), retry)
        return
    from featurize.cluster import Pool, Task, connect

    with storage.lock():
        connect()
        console.print("loading encoders ...")
        pool = Pool(storage.url, settings)
        columns = [open_column(storage, name) for name in pool.columns(len(shards))]
        tasks = [Task(shards[shard], names) for shard, names in missing_shards(columns, list(shards), retry)]
        skipped = len(shards) - len(tasks)
        console.print(f"{len(tasks)} shards to encode, {skipped} finished already; {pool.size} workers")
        if tasks:
            _encode(pool, tasks, settings.max_failed)
    _summary(columns, corpus)


def _chosen(corpus: Corpus, only: list[int] | None) -> dict[int, list[MediaItem]]:
    shards = corpus.shards
    unknown = set(only or ()) - shards.keys()
    if unknown:
        raise UserError(f"--shard {min(unknown)}: the plan has {len(shards)} shards, numbered from 0")
    return {shard: items for shard, items in shards.items() if not only or shard in only}


def _say_missing(storage: Storage, settings: FeaturizeConfig, shards: list[int], retry: bool) -> None:
    from featurize.encoders import build_encoder

    there = {column.name: column for column in list_columns(storage)}
    for encoder in settings.columns:
        name = build_encoder(encoder).spec.folder
        missing = len(list(missing_shards([there[name]], shards, retry))) if name in there else len(shards)
        console.print(f"{name}: {missing} of {len(shards)} shards to encode")


def _encode(pool: "Pool", tasks: "list[Task]", max_failed: float) -> None:
    seen = failed = 0
    with Meter("featurize", sum(len(task.items) for task in tasks), "items") as meter:
        for report in pool.encode(tasks):
            bad = {f.key for failures in report.failures.values() for f in failures if f.code != "absent"}
            seen, failed = seen + report.items, failed + len(bad)
            meter.advance(report.items, f"{failed} failed")
            if failed > max_failed * seen:
                raise UserError(f"{failed} of {seen} items failed, more than max_failed={max_failed}; see store stats")


def _summary(columns: list[Column], corpus: Corpus) -> None:
    table = Table("column", "shards", "usable", "absent", "failed", "MB")
    reasons: list[str] = []
    for column in columns:
        stats = column_stats(column, corpus)
        failures = [failure for failure in stats.failures if failure.code != "absent"]
        reasons += [f"  {f.code:<10} {f.key}: {f.reason} ({column.spec.name})" for f in failures]
        table.add_row(
            column.name,
            f"{stats.shards}/{stats.planned}",
            str(stats.usable),
            str(stats.by_code["absent"]),
            str(len(failures)),
            f"{stats.bytes / 1e6:.1f}",
        )
    console.print(table)
    for line in reasons[:FAILURES_SHOWN]:
        console.print(line, markup=False)
    if len(reasons) > FAILURES_SHOWN:
        console.print(f"  ... and {len(reasons) - FAILURES_SHOWN} more: python -m store stats")


def main() -> None:
    """Entry point."""
    run(app, "stopped; finished shards are kept, and the same command goes on from there")


if __name__ == "__main__":
    main()
