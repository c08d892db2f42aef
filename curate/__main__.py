"""`avllm curate estimate | run | status | report | export-batch | import-batch | review`: instruction data."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from store import Storage, UserError
from store.console import console, make_app, run

if TYPE_CHECKING:  # commands import what needs the extra's packages
    from curate.run import Curation

app = make_app("Make instruction data from captions by outside LLMs, verify each instruction, keep what it rests on.")
INCOMPLETE = 1

Store = Annotated[str, typer.Option("--store", help="The store: a folder or an fsspec URL.")]
Config = Annotated[str, typer.Option("--config", help="YAML of CurationSettings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="field=value, such as mix.description.audio=20.")]
Name = Annotated[str, typer.Argument(help="Of the curation, as its settings name it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked; ask nothing.")]


@contextlib.contextmanager
def _opened(store: str, name: str) -> "Iterator[Curation]":
    """A curation that was run or exported before."""
    from curate.run import open_curation, saved_settings

    storage = Storage(store)
    with open_curation(storage, saved_settings(storage, name)) as curation:
        yield curation


@contextlib.contextmanager
def _configured(store: str, config: str, overrides: list[str] | None) -> "Iterator[Curation]":
    """A curation by its YAML file."""
    from curate.run import load_curation, open_curation

    with open_curation(Storage(store), load_curation(config, overrides or [])) as curation:
        yield curation


@app.command()
def estimate(
    store: Store,
    config: Config,
    overrides: Overrides = None,
    sample: Annotated[int, typer.Option(min=1, help="Items of each cell to ask for; the run uses their replies.")] = 20,
    dry_run: DryRun = False,
) -> None:
    """Ask for a sample: requests, tokens, money, hours and yield of the whole."""
    from curate.estimate import estimate as estimate_all
    from curate.estimate import say_estimate
    from curate.run import save_receipt
    from curate.tables import say_pending, say_spent

    with _configured(store, config, overrides) as curation:
        if dry_run:
            curation.draw_first(sample)
            say_pending(curation)
            return
        save_receipt(curation)
        say_estimate(estimate_all(curation, sample), curation.settings)
        say_spent(curation)


@app.command("run")
def curate(
    store: Store,
    config: Config,
    overrides: Overrides = None,
    give_up: Annotated[bool, typer.Option("--give-up", help="Write without what could not be asked.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Ask what is missing, decide, and write. The same command goes on after any stop; nothing is asked twice."""
    from curate.output import save_all
    from curate.run import save_receipt, waiting
    from curate.tables import say_chosen, say_pending, say_spent

    with _configured(store, config, overrides) as curation:
        if dry_run:
            say_chosen(curation.advance())
            say_pending(curation)
            return
        save_receipt(curation)
        if out := waiting(curation):
            where = curation.batches
            raise UserError(f"{where}: {out} requests wait for replies; import them, or remove the files to ask again")
        chosen = curation.ask_all()
        say_chosen(chosen)
        say_spent(curation)
        undecided = sum(len(one.undecided) for one in chosen.values())
        if undecided and not give_up:
            reason = next(iter(curation.reasons.values()), "")
            console.print(f"incomplete: {undecided} items are undecided, for example: {reason}", markup=False)
            console.print("the same command asks again; --give-up writes without them")
            raise typer.Exit(INCOMPLETE)
        console.print(f"{store}: conversations {', '.join(save_all(curation, chosen))}", markup=False)


@app.command()
def status(store: Store, name: Name) -> None:
    """Say how far a curation is; ask nothing."""
    from curate.tables import say_chosen, say_pending, say_spent

    with _opened(store, name) as curation:
        say_chosen(curation.advance())
        say_pending(curation)
        say_spent(curation)


@app.command()
def report(
    store: Store,
    name: Name,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("curation.html"),
    samples: Annotated[int, typer.Option(min=0, help="Kept and dropped items to show of each cell.")] = 10,
) -> None:
    """Write one HTML page: funnel, costs, scores with thresholds, samples, over-used phrases."""
    from curate.output import load_verdicts
    from curate.report import report_page

    with _opened(store, name) as curation:
        page = report_page(curation, load_verdicts(curation), samples)
    out.write_text(page, encoding="utf-8")
    console.print(f"report: {out}", markup=False)


@app.command("export-batch")
def export_batch(store: Store, config: Config, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Write what can be asked now as batch files. Replies in the same folder are read first."""
    from curate.run import save_receipt
    from curate.tables import say_pending

    with _configured(store, config, overrides) as curation:
        if dry_run:
            curation.advance()
            say_pending(curation)
            return
        save_receipt(curation)
        _step(curation)


@app.command("import-batch")
def import_batch(
    store: Store, name: Name, files: Annotated[list[Path], typer.Argument(help="A provider's output files, any order.")]
) -> None:
    """Keep the replies to batch files, and write what they made possible, and what failed, as the next ones."""
    from curate.run import add_replies

    with _opened(store, name) as curation:
        add_replies(curation, files)
        _step(curation)


def _step(curation: "Curation") -> None:
    """Read and write batch files, and print what is to be submitted."""
    from curate.run import waiting
    from curate.tables import say_chosen

    before = {path.name for path in curation.batches.glob("*.jsonl")}
    say_chosen(curation.ask_by_files())
    for path in sorted(curation.batches.glob("*.jsonl")):
        if path.name not in before:
            console.print(f"to submit: {path}", markup=False)
    console.print(f"{waiting(curation)} requests wait for their replies")


@app.command()
def review(
    store: Store,
    name: Name,
    out: Annotated[Path | None, typer.Option(help="CSV to write, with a column for decisions.")] = None,
    decided: Annotated[Path | None, typer.Option("--in", help="CSV with decisions: keep or drop.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Kept and dropped items to show, each.")] = 50,
) -> None:
    """Write a sample of the verdicts for a person, or read the decisions, which take the place of rules and judge.

    `keep` brings back no repeat, and nothing for which a full cell has no place. A decision that is emptied later
    stands.
    """
    if (out is None) == (decided is None):
        raise UserError("give either --out or --in")
    from curate.output import load_verdicts
    from curate.review import import_reviews, review_csv
    from curate.run import FOLDER, load_reviews

    with _opened(store, name) as curation:
        if out is not None:
            text = review_csv(load_verdicts(curation), count, curation.settings.seed)
            out.write_text(text, encoding="utf-8")
            console.print(f"{out}: write keep or drop into the column 'decision', then give it to --in", markup=False)
        if decided is not None:
            known = load_reviews(curation.storage, name)
            total = len(import_reviews(curation, decided, known))
            where = curation.storage.where(f"{FOLDER}/{name}/reviews.json")
            console.print(f"{where}: {total} decisions; the next run follows them", markup=False)


def main() -> None:
    """Entry point."""
    run(app, "stopped; the same command goes on", extra="curate")


if __name__ == "__main__":
    main()
