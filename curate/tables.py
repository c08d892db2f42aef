"""What commands print about a curation."""

from collections.abc import Mapping

from curate.asking import client_of
from curate.curation import Cell
from curate.run import Curation
from curate.selection import Chosen
from curate.server import most_of
from curate.settings import BILLION
from store.console import console, make_table


def say_chosen(chosen: Mapping[Cell, Chosen]) -> None:
    """Print a row for each cell; one that is not full says how many it lacks, and whether its clips are used up."""
    table = make_table("task", "modality", "wanted", "kept", "of", "undecided", "lacking")
    for cell, one in chosen.items():
        lacking = one.wanted - len(one.kept)
        why = "" if not lacking else " (clips used up)" if one.looked_at >= one.available else ""
        table.add_row(
            cell.task, cell.modality, f"{one.wanted:,}", f"{len(one.kept):,}", f"{one.looked_at:,}",
            f"{len(one.undecided):,}", f"{lacking:,}{why}" if lacking else "",
        )  # fmt: skip
    console.print(table)


def say_spent(curation: Curation) -> None:
    """Print what the ledger has cost."""
    ledger, spent = curation.ledger, curation.ledger.committed
    line = f"{curation.asked:,} requests sent now; {len(ledger):,} replies kept, {spent.tokens:,} tokens"
    if curation.settings.generator.price:
        line += f", ${spent.cost / BILLION:,.4f}"
    if ledger.unsettled:
        line += f"; {ledger.unsettled} requests of killed runs were perhaps billed"
    console.print(line)


def say_pending(curation: Curation) -> None:
    """Print what can be asked now; what depends on its replies comes later."""
    for role, requests in curation.pending().items():
        line = f"{role}: {len(requests):,} requests can be asked now"
        if price := client_of(curation.settings, role).price:
            most = sum(most_of(request, price).cost for request in requests)
            line += f", for ${most / BILLION:,.4f} at most"
        console.print(line)
