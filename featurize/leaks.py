"""The leakage check: media that stand both in training and in evaluation conversations."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.markup import escape

from featurize.sources.copies import find_copies
from featurize.sources.kinds import stem_of
from featurize.sources.youtube import youtube_ids
from store import Corpus, MediaItem, Outline, Storage, UserError, list_conversations, load_outline
from store.console import console, make_table, say_json

SHOWN = 50
EVALUATION = re.compile(r"(?<![a-z])(val|valid|validation|dev|test|testing|eval|evaluation|heldout|benchmark)(?![a-z])")


@dataclass(frozen=True)
class Leak:
    """A medium of evaluation that is also one of training.

    Attributes:
        by: what shows it, the surest sign that the two share: `key`, `uri`, `content`, `stem` of the file or
            `youtube` id.
        value: the shared key, URI, stem or id.
        train: the item of training.
        evaluation: the item of evaluation.
    """

    by: str
    value: str
    train: MediaItem
    evaluation: MediaItem


def signs(item: MediaItem, copies: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What tells a medium, surest first: key, URI, the first of its copies, the stem of its file, the YouTube id there.

    An id at the end of a title may be a word of it: it is a `youtube?`, which tells nothing against another such.
    """
    stem = stem_of(item.uri.rstrip("/").rpartition("/")[2])
    yield from (("key", item.key), ("uri", item.uri))
    if item.uri in copies:
        yield "content", copies[item.uri]
    yield "stem", stem
    for id, sure in youtube_ids(stem):
        yield "youtube" if sure else "youtube?", id


def find_leaks(
    train: Sequence[MediaItem], evaluation: Sequence[MediaItem], probe: bool = False, quiet: bool = False
) -> list[Leak]:
    """The media of `evaluation` that share a sign with one of `train`, each with its surest.

    With `probe`, files of equal size are compared too, with progress unless `quiet`.
    """
    copies = _copies([*train, *evaluation], quiet) if probe else {}
    known: dict[tuple[str, str], MediaItem] = {}
    for item in train:
        for sign in signs(item, copies):
            known.setdefault(sign, item)
    found = ((item, _shared(item, known, copies)) for item in evaluation)
    return [Leak(by.rstrip("?"), value, known[by, value], item) for item, sign in found if sign for by, value in [sign]]


def _copies(items: Iterable[MediaItem], quiet: bool) -> dict[str, str]:
    """The first of its copies by the URI of each file that has some."""
    groups = find_copies({item.uri: item.bytes for item in items if item.bytes}, quiet)
    return {uri: group[0] for group in groups for uri in group}


def _shared(
    item: MediaItem, known: dict[tuple[str, str], MediaItem], copies: Mapping[str, str]
) -> tuple[str, str] | None:
    """The surest sign that is known; of two YouTube ids, one at least has to be sure."""
    for by, value in signs(item, copies):
        against = {"youtube": ("youtube", "youtube?"), "youtube?": ("youtube",)}.get(by, (by,))
        if sign := next(((other, value) for other in against if (other, value) in known), None):
            return sign
    return None


def media_of(storage: Storage, names: Sequence[str]) -> list[MediaItem]:
    """The media items of the conversations called `names`, in the order of the corpus.

    Raises:
        UserError: the store has no such conversations; lists those that it has.
    """
    there = list_conversations(storage)
    if unknown := [name for name in names if name not in there]:
        raise UserError(
            f"{storage.url}: has no conversations {', '.join(unknown)}; it has: {', '.join(there) or 'none'}"
        )
    outlines = [load_outline(storage, name) for name in names]
    return _items(Corpus.load(storage), outlines)


def is_evaluation(name: str, outline: Outline) -> bool:
    """Whether conversations are for evaluation: by their split where they tell it, else by their name."""
    if outline.splits:
        return outline.splits <= {"val", "test"}
    return bool(EVALUATION.search(name.lower()))


def warn(storage: Storage, corpus: Corpus, planned: dict[str, Outline], probe: bool) -> None:
    """Say which media of evaluation are also in training, where one side is planned now and not yet in the store."""
    stored = {name: load_outline(storage, name) for name in list_conversations(storage) if name not in planned}
    for train, evaluation in ((planned, {**planned, **stored}), (stored, planned)):
        for name, outline in evaluation.items():
            others = {other: each for other, each in train.items() if not is_evaluation(other, each)}
            if others and is_evaluation(name, outline):
                _warn(storage, corpus, name, outline, others, probe)


def _warn(
    storage: Storage, corpus: Corpus, name: str, outline: Outline, training: dict[str, Outline], probe: bool
) -> None:
    found = find_leaks(_items(corpus, training.values()), _items(corpus, [outline]), probe)
    if found:
        console.print(
            f"warning: {len(found)} media of the evaluation conversations {name} are also in training, first "
            f"{found[0].evaluation.uri} (same {found[0].by}); "
            f"see: python -m featurize leaks {shlex.join(training)} --against {shlex.quote(name)} "
            f"--store {shlex.quote(storage.url)}{' --probe' * probe}",
            markup=False,
        )


def _items(corpus: Corpus, outlines: Iterable[Outline]) -> list[MediaItem]:
    keys = {key for outline in outlines for key in outline.keys}
    return [item for item in corpus.items if item.key in keys]


def leaks(
    train: Annotated[list[str], typer.Argument(help="Names of the training conversations.")],
    store: Annotated[str, typer.Option("--store", help="Their store: a folder or an fsspec URL.")],
    against: Annotated[list[str], typer.Option("--against", help="Evaluation conversations; may stand several times.")],
    against_store: Annotated[str | None, typer.Option(help="The store of these, if it is another.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Compare files of equal size too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead, for scripts.")] = False,
) -> None:
    """List media that are in training and in evaluation conversations; exit 1 if there are any."""
    training = media_of(Storage(store), train)
    evaluation = media_of(Storage(against_store or store), against)
    found = find_leaks(training, evaluation, probe, quiet=as_json)
    if as_json:
        said = [{"by": f.by, "shared": f.value, "train": f.train.uri, "evaluation": f.evaluation.uri} for f in found]
        say_json({"training": len(training), "evaluation": len(evaluation), "leaks": said})
    else:
        _say(found, len(training), len(evaluation))
    raise typer.Exit(1 if found else 0)


def _say(found: Sequence[Leak], training: int, evaluation: int) -> None:
    table = make_table("by", "shared", "training file", "evaluation file")
    for leak in found[:SHOWN]:
        table.add_row(leak.by, *map(escape, (leak.value, leak.train.uri, leak.evaluation.uri)))
    if found:
        console.print(table)
    if found[SHOWN:]:
        console.print(f"... and {len(found) - SHOWN} more")
    console.print(f"{len(found)} of {evaluation} evaluation media are among the {training} of training")
