"""`avllm store ...`: list, count, verify and maintain a store."""

from collections.abc import Iterator
from typing import Annotated

import typer

from store.column import Column
from store.console import console, line_of, make_app, make_table, run, say_json, size_text
from store.conversation import count_conversations, list_conversations
from store.corpus import Corpus
from store.errors import DamagedError
from store.exchange.commands import app as care
from store.items import CORPUS, check_is_store
from store.show import describe, find_item, say
from store.sidecar import Failure
from store.storage import Storage
from store.verify import (
    ColumnStats,
    column_folders,
    column_stats,
    find_damaged,
    open_folder,
    unknown_files,
    verify_tables,
)

app = make_app("List, count and verify what a store holds, and take care of it.")
Where = Annotated[str, typer.Argument(help="The store: a folder or an fsspec URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead, for scripts.")]
Name = Annotated[str | None, typer.Option("--column", help="One column only, by name or name.digest.")]
NO_COLUMNS = "{}: no columns yet; avllm featurize run makes them"
DESCRIBED = {"modality", "features"}


def _counted(
    storage: Storage, name: str | None, corpus: Corpus, damaged: list[DamagedError]
) -> Iterator[tuple[Column, ColumnStats]]:
    """The columns with their counts; errors of damaged files are appended to `damaged`, and the rest is counted."""
    for folder in column_folders(storage, name):
        try:
            column = open_folder(storage, folder)
        except DamagedError as error:
            damaged.append(error)
        else:
            yield column, column_stats(column, corpus, damaged)


def _end(damaged: list[DamagedError]) -> None:
    """Print the damage on stderr; if there is any, exit with status 1."""
    for error in damaged:
        typer.echo(f"damaged: {line_of(error)}", err=True)
    if damaged:
        raise typer.Exit(1)


def _counts(column: Column, stats: ColumnStats) -> dict[str, object]:
    return {
        "column": column.name,
        "shards": stats.shards,
        "planned": stats.planned,
        "usable": stats.usable,
        "not_usable": dict(stats.by_code),
        "bytes": stats.bytes,
    }


@app.command("ls")
def list_store(store: Where, as_json: AsJson = False) -> None:
    """List the corpus, the columns with their features, and the conversations."""
    storage = Storage(store)
    corpus = Corpus.load(storage)
    damaged: list[DamagedError] = []
    columns = list(_counted(storage, None, corpus, damaged))
    talks = {name: count_conversations(storage, name) for name in list_conversations(storage)}
    if as_json:
        reports = [_counts(*pair) | pair[0].spec.model_dump(mode="json", include=DESCRIBED) for pair in columns]
        shards = len(corpus.shards)
        say_json({"items": len(corpus), "shards": shards, "columns": reports, "conversations": talks})
    else:
        _say_store(storage, corpus, columns, talks)
    _end(damaged)


def _say_store(
    storage: Storage, corpus: Corpus, columns: list[tuple[Column, ColumnStats]], talks: dict[str, int]
) -> None:
    console.print(f"{storage.url}: {len(corpus)} items in {len(corpus.shards)} shards")
    table = make_table("column", "features", "shards", "usable", "size")
    for column, stats in columns:
        features = ", ".join(
            f"{name} [{' x '.join('*' if n is None else str(n) for n in f.shape)}] {f.dtype}"
            for name, f in column.spec.features.items()
        )
        table.add_row(
            column.name, features, f"{stats.shards}/{stats.planned}", str(stats.usable), size_text(stats.bytes)
        )
    console.print(table)
    for name, count in talks.items():
        console.print(f"conversations {name}: {count}")


@app.command()
def keys(store: Where) -> None:
    """List every item: its key, kind and file, and of a part of a file the seconds from and to."""
    for item in Corpus.load(Storage(store)).items:
        part = f"\t{item.start or 0.0}-{'' if item.end is None else item.end}" if item.is_part else ""
        console.print(f"{item.key}\t{item.kind}\t{item.uri}{part}", markup=False)


@app.command()
def show(
    store: Where,
    key: Annotated[str, typer.Argument(help="An item's key, as `keys` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Say what is known of an item: its file, arrays or failures in each column, times, captions, conversations."""
    storage = Storage(store)
    item = find_item(storage, key)
    if as_json:
        say_json(describe(storage, item))
    else:
        say(storage, item)


@app.command()
def stats(
    store: Where,
    column: Name = None,
    failures: Annotated[bool, typer.Option(help="List every failed item with its reason.")] = True,
    as_json: AsJson = False,
) -> None:
    """Count usable and failed items of each column, and say why items failed."""
    storage = Storage(store)
    corpus = Corpus.load(storage)
    reports = []
    damaged: list[DamagedError] = []
    for opened, totals in _counted(storage, column, corpus, damaged):
        defects = [failure for failure in totals.failures if failures and failure.code != "absent"]
        reports.append(_counts(opened, totals) | {"failures": [failure.model_dump() for failure in defects]})
        if not as_json:
            _say_stats(opened, totals, defects)
    if as_json:
        say_json(reports)
    elif not reports and not damaged:
        console.print(NO_COLUMNS.format(storage.url))
    _end(damaged)


def _say_stats(column: Column, totals: ColumnStats, defects: list[Failure]) -> None:
    codes = ", ".join(f"{count} {code}" for code, count in sorted(totals.by_code.items()))
    lacking = f"{len(totals.failures)} not ({codes})" if codes else "none lacking"
    console.print(
        f"{column.name}: {totals.shards}/{totals.planned} shards, {totals.usable} usable, {lacking}, "
        f"{size_text(totals.bytes)}"
    )
    for failure in defects:
        console.print(f"  {failure.code:<10} {failure.key}: {failure.reason}", markup=False)


@app.command()
def verify(
    store: Where,
    column: Name = None,
) -> None:
    """Compare every byte with its checksum, and every shard with the corpus plan; exit 1 if anything is damaged.

    `avllm featurize repair STORE` encodes damaged shards again.
    """
    storage = Storage(store)
    if not column_folders(storage, None):
        check_is_store(storage)
    tables = dict(verify_tables(storage))
    for fault in tables.values():
        console.print(f"damaged: {fault}", markup=False)
    for name in unknown_files(storage):
        console.print(f"not the store's, and nothing reads it: {storage.where(name)}", markup=False)
    if CORPUS in tables:
        raise typer.Exit(1)
    corpus = Corpus.load(storage)
    names = column_folders(storage, column)
    if not names:
        console.print(NO_COLUMNS.format(storage.url))
    sound = [_verify(storage, name, corpus) for name in names]
    raise typer.Exit(0 if all(sound) and not tables else 1)


def _verify(storage: Storage, name: str, corpus: Corpus) -> bool:
    """Verify one column; return whether it is sound."""
    try:
        column = open_folder(storage, name)
    except DamagedError as error:
        console.print(f"damaged: {error}", markup=False)
        return False
    shards = column.shards()
    damaged = find_damaged(column, corpus)
    missing = len(corpus.shards) - len(shards)
    console.print(f"{column.name}: {len(shards)} shards checked, {len(damaged)} damaged, {missing} not featurized yet")
    return not damaged


app.add_typer(care)


def main() -> None:
    """Entry point."""
    run(app)


if __name__ == "__main__":
    main()
