"""The maintenance commands of `avllm store`: thin wrappers, each around its own module."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from store import gc as collector
from store import upgrade as upgrading
from store.column import list_columns, open_column
from store.console import Meter, console, make_app
from store.corpus import Corpus
from store.errors import UserError
from store.exchange import export, hub, merge, transfer, video_chatgpt, webdataset
from store.exchange.card import make_card
from store.exchange.importing import NAMED, Foreign, Placed, check_sources, import_column, place, plan_foreign
from store.index import publish_index
from store.items import CORPUS, Kind
from store.storage import Storage
from store.verify import column_stats, find_damaged

app = make_app("Take care of a store.")
imports = make_app("Import features that were made elsewhere.")
app.add_typer(imports, name="import")
Where = Annotated[str, typer.Argument(help="The store: a folder or an fsspec URL.")]
Target = Annotated[str, typer.Argument(help="owner/name of a hub, an fsspec URL, or a folder (/... or ./...).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")]
ShardSize = Annotated[int, typer.Option(min=1, help="Items in a shard, if the store is new.")]


@app.command("export")
def export_columns(
    form: Annotated[export.Form, typer.Argument(help="A zarr v3 folder, or one HDF5 file.")],
    store: Where,
    out: Annotated[Path, typer.Argument(help="What to write: a local path.")],
    column: Annotated[list[str] | None, typer.Option(help="A column, by name or name.digest; else all.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write columns as plain arrays, for other tools: zarr or HDF5."""
    storage = Storage(store)
    chosen = [open_column(storage, name) for name in column] if column else list_columns(storage)
    if not chosen:
        raise UserError(f"{storage.url}: has no columns to export")
    corpus = Corpus.load(storage)
    items = sum(column_stats(exported, corpus).usable for exported in chosen)
    with Meter(f"export {form}", items, "items") as meter:
        export.export(chosen, out, form, overwrite=overwrite, advance=meter.advance)
    console.print(f"{out}: {', '.join(exported.name for exported in chosen)}")


@imports.command("webdataset")
def import_webdataset(
    store: Where,
    tars: Annotated[list[Path], typer.Argument(help="Uncompressed tars with <key>.<suffix>.npy and <key>.json.")],
    name: Annotated[str, typer.Option(help="Name of the column, such as clip-vit-l-14.")],
    modality: Annotated[Literal["visual", "audio"], typer.Option(help="What its encoder perceived.")],
    feature: Annotated[
        list[str] | None, typer.Option(help="suffix=feature, such as cls.npy=temporal; else x.npy gives x.")
    ] = None,
    about: Annotated[
        list[str] | None, typer.Option(help="field=value of how the numbers were made, such as layer=-2.")
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="What the media are that do not tell it, if the store is new.")
    ] = None,
    shard_size: ShardSize = 256,
    dry_run: DryRun = False,
) -> None:
    """Import arrays from WebDataset tars.

    Samples are found in the corpus by key or by the name of the file; a new store takes all of them.
    """
    index, chosen = webdataset.index_tars(tars, _pairs(feature, "--feature") if feature else None)
    if index.ignored:
        console.print(f"not imported: members {', '.join(sorted(index.ignored))}")
    known = {field: yaml.safe_load(value) for field, value in _pairs(about or [], "--about").items()}
    with Meter("read", sum(tar.stat().st_size for tar in tars), "bytes") as meter:
        foreign = webdataset.read_webdataset(index, chosen, name, modality, known, meter.advance)
    _import(store, foreign, kind or ("video" if modality == "visual" else "audio"), shard_size, dry_run)


@imports.command("video-chatgpt")
def import_video_chatgpt(
    store: Where,
    folder: Annotated[Path, typer.Argument(help="Folder with one <video id>.pkl for each video.")],
    name: Annotated[str, typer.Option(help="Name of the column.")] = "clip-vit-l-14-video-chatgpt",
    shard_size: ShardSize = 256,
    dry_run: DryRun = False,
) -> None:
    """Import Video-ChatGPT's pickles of features. Nothing that a pickle names is run."""
    paths = video_chatgpt.find_pickles(folder)
    with Meter("read", sum(path.stat().st_size for path in paths), "bytes") as meter:
        foreign = video_chatgpt.read_video_chatgpt(paths, name, meter.advance)
    _import(store, foreign, "video", shard_size, dry_run)


def _import(store: str, foreign: Foreign, kind: Kind, shard_size: int, dry_run: bool) -> None:
    storage = Storage(store)
    with contextlib.nullcontext() if dry_run else storage.lock():
        check_sources(storage, foreign.spec)
        is_new = not storage.exists(CORPUS)
        corpus = Corpus() if is_new else Corpus.load(storage)
        if is_new:
            plan_foreign(corpus, foreign, kind, shard_size)
        placed = place(corpus, foreign, storage.url)
        if dry_run:
            _say_unmatched(placed)
            console.print(f"{foreign.spec.folder}: {len(placed.ids)} of {len(corpus)} items would be imported")
            return
        if is_new:
            corpus.save(storage)
        failed = 0
        with Meter("import", len(corpus), "items") as meter:
            for items, bad in import_column(storage, corpus, foreign, placed):
                failed += bad
                meter.advance(items, f"{failed} failed")
        column = open_column(storage, foreign.spec.folder)
    _say_unmatched(placed)
    stats = column_stats(column, corpus)
    console.print(f"{column.name}: {stats.usable} usable, {len(stats.failures)} not; see store stats")


def _say_unmatched(placed: Placed) -> None:
    if placed.strangers:
        named = f"{len(placed.strangers)}, such as {', '.join(placed.strangers[:NAMED])}"
        console.print(f"not imported, as no item of the corpus matches: {named}", markup=False)


@app.command()
def gc(
    store: Where,
    keep: Annotated[list[str] | None, typer.Option(help="A column to keep; all others go.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A column that goes.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, as without --yes.")] = False,
) -> None:
    """Remove columns no longer wanted, and leftovers. Let no other command write meanwhile."""
    if yes and dry_run:
        raise UserError("give either --yes or --dry-run")
    storage = Storage(store)
    Corpus.load(storage)
    temporary = collector.find_temporary(storage)  # first, since the lock removes them
    with storage.lock() if yes else contextlib.nullcontext():
        rubbish = temporary + collector.find_rubbish(storage, keep or [], remove or [])
        for heap in rubbish:
            console.print(f"{heap.name}: {heap.why}, {len(heap.files)} files, {heap.bytes / 1e9:.3f} GB", markup=False)
        for line in collector.orphaned(storage, rubbish):
            console.print(f"mind: {line}", markup=False)
        if yes:
            collector.clear(storage, rubbish)
    size = sum(heap.bytes for heap in rubbish) / 1e9
    console.print(f"{size:.3f} GB {'removed' if yes else 'would go; --yes removes it' if rubbish else 'to remove'}")


@app.command()
def upgrade(store: Where, dry_run: DryRun = False) -> None:
    """Convert sidecars of format 1 to format 2, which is smaller and faster to read. To resume, repeat the command."""
    storage = Storage(store)
    with contextlib.nullcontext() if dry_run else storage.lock():
        for column in list_columns(storage):
            shards, old = column.shards(), 0
            with Meter(f"upgrade {column.name}", len(shards), "sidecars") as meter:
                for is_old in upgrading.upgrade(column, write=not dry_run):
                    old += is_old
                    meter.advance(1)
            if old and not dry_run:
                publish_index(column)
            would = " would be" if dry_run else " are"
            console.print(f"{column.name}: {old}{would} upgraded, {len(shards) - old} are of format 2")


@app.command("merge")
def merge_stores(
    out: Annotated[str, typer.Argument(help="The store to merge into; made if it is not there.")],
    stores: Annotated[list[str], typer.Argument(help="The stores to take from; they stay as they are.")],
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Conversations that differ under one name are named after their store.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Merge stores featurized on different machines.

    They hold shards of one plan, or plans of different files. Stopped, the same command goes on.
    """
    storage, sources = Storage(out), [Storage(url) for url in stores]
    if dry_run:
        planned = merge.plan_merge(storage, sources, prefix=prefix)
        console.print(
            f"{storage.url}: would have {len(planned.corpus)} items, {planned.new} of them new; "
            f"{planned.shards} shards would be copied, but for those that are there"
        )
        return
    if not storage.exists(CORPUS):
        merge.plan_merge(storage, sources, prefix=prefix)  # check first, so that a refused merge creates no folder
    with storage.lock():
        planned = merge.plan_merge(storage, sources, prefix=prefix)
        console.print(f"{storage.url}: {len(planned.corpus)} items, {planned.new} of them new")
        with Meter("merge", planned.shards, "shards") as meter:
            differing = merge.run_merge(planned, meter.advance)
    for line in [*differing, *merge.half_filled(storage)]:
        console.print(line, markup=False)


@app.command()
def card(
    store: Where,
    licence: Annotated[
        str | None, typer.Option("--license", help="Such as cc-by-4.0; else the one that the card has.")
    ] = None,
) -> None:
    """Write a data card, README.md. It tells items, columns, digests and provenance, and names no media file."""
    storage = Storage(store)
    Corpus.load(storage)  # first, since the lock would make a folder of a wrong name
    with storage.lock():
        storage.write(transfer.CARD, make_card(storage, licence))
    console.print(f"{storage.where(transfer.CARD)}: written")


@app.command()
def push(
    store: Where,
    target: Target,
    licence: Annotated[str | None, typer.Option("--license", help="For the card, such as cc-by-4.0.")] = None,
    strip_uris: Annotated[
        bool,
        typer.Option(
            "--strip-uris",
            help="Send file names without the folder that all media share. "
            "Such a store takes no new files, and cannot be merged with the one it came from.",
        ),
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Of a repository that is made now; else private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
) -> None:
    """Send a store to a hub, a folder or a URL. Stopped, the same command goes on."""
    source = Storage(store)
    cargo = transfer.load_cargo(source, strip_uris=strip_uris)
    cargo.card = make_card(source, licence, cargo.tables[CORPUS])
    if cargo.corpus.items:
        console.print(f"{CORPUS} names media as {cargo.corpus.items[0].uri}", markup=False)
    _say_cargo(cargo)
    if dry_run:
        console.print(f"{target}: {cargo.shards} shards would be sent, but for those that are there", markup=False)
        return
    with Meter("push", cargo.shards, "shards") as meter:
        if hub.is_repository(target):
            sent = hub.send_to_hub(source, target, cargo, public=public, advance=meter.advance)
        else:
            storage = Storage(target)
            with storage.lock():
                sent = transfer.send(storage, cargo, meter.advance)
    console.print(f"{target}: {sent} shards sent, {cargo.shards - sent} were there")


@app.command()
def pull(
    source: Target,
    store: Where,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched; fetch nothing.")] = False,
) -> None:
    """Fetch a store from a hub, a folder or a URL. It is verified; exit 1 if it is damaged."""
    remote = Storage(hub.repository_url(source) if hub.is_repository(source) else source)
    cargo = transfer.load_cargo(remote, strip_uris=False)
    _say_cargo(cargo)
    storage = Storage(store)
    if dry_run:
        line = f"{storage.url}: {cargo.shards} shards would be fetched from {source}, but for those that are there"
        console.print(line, markup=False)
        return
    with storage.lock():
        with Meter("pull", cargo.shards, "shards") as meter:
            fetched = transfer.send(storage, cargo, meter.advance)
        corpus = Corpus.load(storage)
        damaged = sum(len(find_damaged(column, corpus)) for column in list_columns(storage))
    console.print(f"{storage.url}: {fetched} shards fetched, {cargo.shards - fetched} were there, {damaged} damaged")
    raise typer.Exit(1 if damaged else 0)


def _say_cargo(cargo: transfer.Cargo) -> None:
    tables = sum(len(content) for content in cargo.tables.values())
    console.print(f"{', '.join(cargo.tables)}: {tables / 1e6:.3f} MB", markup=False)
    for name, (column, shards) in cargo.columns.items():
        size = column_stats(column, cargo.corpus).bytes
        console.print(f"{name}: {len(shards)} shards, {size / 1e9:.3f} GB", markup=False)


def _pairs(words: list[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{option} {word!r}: expected name=value")
        pairs[name] = value
    return pairs
