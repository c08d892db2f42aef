"""`avllm featurize plan | leaks | estimate | run | repair | frames`: media files to columns of a store."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import pyarrow.compute as pc
import typer

from featurize.leaks import leaks
from featurize.pending import find_columns, missing_shards
from featurize.plan import Store, plan
from featurize.pool import Pool, connect
from featurize.settings import EncoderSettings, FeaturizeConfig
from featurize.worker import Task
from store import (
    Column,
    Corpus,
    Storage,
    UserError,
    column_stats,
    list_columns,
    load_settings,
    open_column,
)
from store.console import Meter, console, make_app, make_table, run, size_text
from store.index import publish_index
from store.items import Shards
from store.publish import publishing
from store.show import find_item

app = make_app("Run frozen encoders once over media files; keep what they say as columns of a store.")
FAILURES_SHOWN = 20


app.command()(plan)
app.command()(leaks)


@app.command("run")
def featurize(
    store: Store,
    config: Annotated[
        str,
        typer.Option("--config", help="A YAML file of FeaturizeConfig, or the name of a shipped one, such as demo."),
    ],
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
    shards = _chosen(corpus.shards, only)
    if dry_run:
        _say_missing(storage, settings, corpus.shards, shards, retry)
        return
    with storage.lock():
        matches = find_columns(storage, settings.columns)
        columns = [column for column in matches if column]
        known = len(columns) == len(matches)
        missing = len(list(missing_shards(columns, shards, retry))) if known else len(shards)
        if missing:
            columns = _encode(storage, settings, corpus.shards, shards, retry, missing)
        else:
            console.print(f"0 shards to encode, {len(shards)} finished already")
        for column in columns:
            publish_index(column)
    if not _summary(columns, corpus, encoded=missing > 0):
        raise typer.Exit(1)


@app.command()
def estimate(
    store: Store,
    config: Annotated[
        str,
        typer.Option("--config", help="A YAML file of FeaturizeConfig, or the name of a shipped one, such as demo."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, such as columns.0.batch=64.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="Items to measure.")] = 16,
    price: Annotated[float | None, typer.Option(help="Of a worker for an hour.")] = None,
) -> None:
    """Measure a sample of the planned media: the hours, gigabytes and cost of a run on all of them. Writes nothing."""
    from featurize.estimate import measure, show

    settings = load_settings(FeaturizeConfig, config, overrides or ())
    corpus = Corpus.load(Storage(store))
    seen = corpus.items.where(lambda rows: pc.greater(rows.column("bytes").fill_null(0), 0))
    if not seen:
        raise UserError(f"{store}: none of the planned files can be seen from here")
    for what, others in (
        ("not found when last planned", corpus.items.where(lambda rows: rows.column("bytes").is_null())),
        ("empty", corpus.items.where(lambda rows: pc.equal(rows.column("bytes").fill_null(1), 0))),
    ):
        if others:
            console.print(
                f"not counted: {len(others)} of {len(corpus)} items, {what}, first {others[0].uri}", markup=False
            )
    console.print(f"measuring {min(sample, len(seen))} items ...")
    shard = max(len(items) for items in corpus.shards.values())
    show(measure(seen, settings, sample), len(seen), shard, settings, price)


def _chosen(shards: Shards, only: list[int] | None) -> list[int]:
    unknown = set(only or ()) - shards.keys()
    if unknown:
        raise UserError(f"--shard {min(unknown)}: the plan has {len(shards)} shards, numbered from 0")
    return [shard for shard in shards if not only or shard in only]


def _say_missing(storage: Storage, settings: FeaturizeConfig, shards: Shards, chosen: list[int], retry: bool) -> None:
    stored = {column.name: column for column in list_columns(storage)}
    for encoder, match in zip(settings.columns, find_columns(storage, settings.columns), strict=True):
        if not match and any(column.spec.name == encoder.column for column in stored.values()):
            match = stored.get(_name(encoder))
        missing = [shard for shard, _ in missing_shards([match], chosen, retry)] if match else chosen
        name, items = match.name if match else f"{encoder.column} (new)", sum(map(shards.size, missing))
        console.print(f"{name}: {len(missing)} of {len(chosen)} shards to encode, {items} items")
    console.print("avllm featurize estimate measures what time and space they take")


def _name(encoder: EncoderSettings) -> str:
    from featurize.encoders import build_encoder

    console.print(f"loading {encoder.encoder} ...", markup=False)
    return build_encoder(encoder).spec.folder


def _encode(
    storage: Storage, settings: FeaturizeConfig, shards: Shards, chosen: list[int], retry: bool, missing: int
) -> list[Column]:
    """Encode missing shards and return the columns; `missing` is the number known before the encoders are loaded."""
    console.print("loading encoders ...")
    with contextlib.closing(Pool(connect(storage.url, settings), settings)) as pool:
        columns = [open_column(storage, name) for name in pool.columns(missing)]
        tasks = [Task(shard, names) for shard, names in missing_shards(columns, chosen, retry)]
        skipped = len(chosen) - len(tasks)
        console.print(f"{len(tasks)} shards to encode, {skipped} finished already; {pool.size} workers")
        seen = failed = 0
        with Meter("featurize", sum(shards.size(task.shard) for task in tasks), "items") as meter:
            for report in pool.encode(tasks, shards):
                bad = {f.key for failures in report.failures.values() for f in failures if f.code != "absent"}
                seen, failed = seen + report.items, failed + len(bad)
                meter.advance(report.items, f"{failed} failed")
                if failed > settings.max_failed * seen:
                    raise UserError(
                        f"{failed} of {seen} items failed, more than max_failed={settings.max_failed}; see store stats"
                    )
    return columns


def _summary(columns: list[Column], corpus: Corpus, encoded: bool) -> bool:
    """Print what the columns hold and what failed; return whether no column consists of failures alone."""
    table = make_table("column", "shards", "usable", "absent", "failed", "size")
    reasons: dict[str, list[str]] = {}
    failed: set[str] = set()
    useless: list[str] = []
    for column in columns:
        stats = column_stats(column, corpus)
        failures = [failure for failure in stats.failures if failure.code != "absent"]
        failed.update(failure.key for failure in failures)
        for f in failures:
            reasons.setdefault(f"  {f.code:<10} {f.key}: {f.reason}", []).append(column.spec.name)
        if failures and not stats.usable:
            useless.append(column.name)
        table.add_row(
            column.name,
            f"{stats.shards}/{stats.planned}",
            str(stats.usable),
            str(stats.by_code["absent"]),
            str(len(failures)),
            size_text(stats.bytes),
        )
    console.print(table)
    for line, names in list(reasons.items())[:FAILURES_SHOWN]:
        console.print(f"{line} ({', '.join(names)})", markup=False)
    if len(reasons) > FAILURES_SHOWN:
        console.print(f"  ... and {len(reasons) - FAILURES_SHOWN} more: avllm store stats")
    if failed and encoded:
        console.print(
            f"{len(failed)} items failed: mend the files, or plan them again where they are now; "
            "then the same command with --retry"
        )
    elif failed:
        console.print(f"{len(failed)} failed items stay failed; --retry encodes them again")
    for name in useless:
        console.print(f"{name}: holds no usable item")
    return not useless


@app.command()
def repair(
    store: Annotated[str, typer.Argument(help="The store: a folder or an fsspec URL.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the run, such as gpus=1.")] = None,
    column: Annotated[str | None, typer.Option(help="One column only, by name or name.digest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is damaged; encode nothing.")] = False,
) -> None:
    """Encode damaged shards again, and nothing else; exit 1 if some are not sound in the end."""
    from featurize.repair import repair as repair_store

    if not repair_store(store, column, overrides or (), dry_run):
        raise typer.Exit(1)


@app.command()
def frames(
    store: Store,
    key: Annotated[str, typer.Argument(help="An item's key, as avllm store keys lists it.")],
    out: Annotated[Path, typer.Option(help="The picture to write: a .png or .jpg file.")],
    count: Annotated[int, typer.Option(min=1, max=1024, help="Frames of a film, on the uniform grid.")] = 8,
) -> None:
    """Draw the frames that an encoder takes of an item, with their times, as one picture."""
    from featurize.sheet import contact_sheet

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {out}: expected a .png or .jpg file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no folder {out.parent}; make it first, or name a file in one that is there")
    item = find_item(Storage(store), key)
    with publishing(out) as temporary:
        contact_sheet(item, count).save(temporary)
    console.print(f"{out}: written", markup=False)


def main() -> None:
    """Entry point."""
    run(app, "stopped; finished shards are kept, and the same command goes on from there", extra="featurize")


if __name__ == "__main__":
    main()
