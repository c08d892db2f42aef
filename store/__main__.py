"""`python -m store ...`: look at what a store holds, check it, and take care of it."""

from typing import Annotated

import typer
from rich.table import Table

from store.care.commands import app as care
from store.column import Column, list_columns, open_column
from store.console import Meter, console, make_app, run
from store.conversation import FOLDER as CONVERSATIONS
from store.conversation import load_conversations
from store.corpus import Corpus
from store.storage import Storage
from store.verify import column_stats, verify_column

app = make_app("List, count and verify what a store holds, and take care of it.")
Where = Annotated[str, typer.Argument(help="The store: a folder or an fsspec URL.")]
Name = Annotated[str | None, typer.Option("--column", help="One column only, by name or name.digest.")]


def _columns(storage: Storage, name: str | None) -> list[Column]:
    columns = [open_column(storage, name)] if name else list_columns(storage)
    if not columns:
        console.print(f"{storage.url}: no columns yet; python -m featurize run makes them")
    return columns


@app.command("ls")
def list_store(store: Where) -> None:
    """List the corpus, the columns with their features, and the conversations."""
    storage = Storage(store)
    corpus = Corpus.load(storage)
    console.print(f"{storage.url}: {len(corpus)} items in {len(corpus.shards)} shards")
    table = Table("column", "features", "shards", "usable", "MB")
    for column in list_columns(storage):
        features = ", ".join(
            f"{name} [{' x '.join('*' if n is None else str(n) for n in f.shape)}] {f.dtype}"
            for name, f in column.spec.features.items()
        )
        stats = column_stats(column, corpus)
        table.add_row(
            column.name, features, f"{stats.shards}/{stats.planned}", str(stats.usable), f"{stats.bytes / 1e6:.1f}"
        )
    console.print(table)
    for name in storage.names(CONVERSATIONS):
        stem = name.removesuffix(".parquet")
        console.print(f"conversations {stem}: {len(load_conversations(storage, stem))}")


@app.command()
def keys(store: Where) -> None:
    """List every item: its key, kind and file."""
    for item in Corpus.load(Storage(store)).items:
        console.print(f"{item.key}\t{item.kind}\t{item.uri}", markup=False)


@app.command()
def stats(
    store: Where,
    column: Name = None,
    failures: Annotated[bool, typer.Option(help="List every failed item with its reason.")] = True,
) -> None:
    """Count usable and failed items of each column, and say why items failed."""
    storage = Storage(store)
    corpus = Corpus.load(storage)
    for each in _columns(storage, column):
        found = column_stats(each, corpus)
        codes = ", ".join(f"{count} {code}" for code, count in sorted(found.by_code.items()))
        console.print(
            f"{each.name}: {found.shards}/{found.planned} shards, {found.usable} usable, "
            f"{len(found.failures)} not ({codes or 'none'}), {found.bytes / 1e6:.1f} MB"
        )
        for failure in found.failures if failures else ():
            if failure.code != "absent":
                console.print(f"  {failure.code:<10} {failure.key}: {failure.reason}", markup=False)


@app.command()
def verify(store: Where, column: Name = None) -> None:
    """Compare every shard's bytes and items with its checksums and the corpus plan; exit 1 if any is damaged."""
    storage = Storage(store)
    corpus = Corpus.load(storage)
    damaged = 0
    for each in _columns(storage, column):
        shards = each.shards()
        with Meter(f"verify {each.name}", len(shards), "shards") as meter:
            for shard, fault in verify_column(each, corpus):
                meter.advance(1)
                if fault:
                    damaged += 1
                    console.print(f"damaged: {each.name} shard {shard}: {fault}", markup=False)
        missing = len(corpus.shards) - len(shards)
        console.print(f"{each.name}: {len(shards)} shards checked, {missing} not featurized yet")
    raise typer.Exit(1 if damaged else 0)


app.add_typer(care)


def main() -> None:
    """Entry point."""
    run(app)


if __name__ == "__main__":
    main()
