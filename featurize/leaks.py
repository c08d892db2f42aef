"""The leakage check: media that appear in both training and evaluation conversations."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
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
    """An evaluation medium that is also a training medium.

    Attributes:
        by: the strongest sign that the two share: `key`, `uri`, `content`, `stem` of the file or `youtube` id.
        value: the shared key, URI, stem or id; for `content` the URI of the first copy.
        train: the training item.
        evaluation: the evaluation item.
    """

    by: str
    value: str
    train: MediaItem
    evaluation: MediaItem


def signs(item: MediaItem, copies: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Signs that identify a medium, strongest first: key, URI, first copy, stem of its file, YouTube id in the stem.

    An id at the end of a title may be an ordinary word: it is a `youtube?`, which matches no other `youtube?`.
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
    """The media of `evaluation` that share a sign with one of `train`, each with its strongest sign.

    With `probe`, files of equal size are compared too, with progress unless `quiet`.
    """
    copies = _copies([*train, *evaluation], quiet) if probe else {}
    known: dict[tuple[str, str], MediaItem] = {}
    for item in train:
        for sign in signs(item, copies):
            known.setdefault(sign, item)
    matches = ((item, _shared(item, known, copies)) for item in evaluation)
    return [
        Leak(by.rstrip("?"), value, known[by, value], item) for item, sign in matches if sign for by, value in [sign]
    ]


def _copies(items: Iterable[MediaItem], quiet: bool) -> dict[str, str]:
    """The first copy of each file that has copies, by URI."""
    groups = find_copies({item.uri: item.bytes for item in items if item.bytes}, quiet)
    return {uri: group[0] for group in groups for uri in group}


def _shared(
    item: MediaItem, known: dict[tuple[str, str], MediaItem], copies: Mapping[str, str]
) -> tuple[str, str] | None:
    """The strongest sign in `known`; of two YouTube ids, at least one must be certain."""
    for by, value in signs(item, copies):
        comparable = {"youtube": ("youtube", "youtube?"), "youtube?": ("youtube",)}.get(by, (by,))
        if sign := next(((other, value) for other in comparable if (other, value) in known), None):
            return sign
    return None


def media_of(storage: Storage, names: Sequence[str]) -> list[MediaItem]:
    """The media items of the conversations called `names`, in the order of the corpus.

    Raises:
        UserError: the store has no such conversations; lists those that it has.
    """
    stored = list_conversations(storage)
    if unknown := [name for name in names if name not in stored]:
        raise UserError(
            f"{storage.url}: has no conversations {', '.join(unknown)}; it has: {', '.join(stored) or 'none'}"
        )
    outlines = [load_outline(storage, name) for name in names]
    return _items(Corpus.load(storage), outlines)


def is_evaluation(name: str, outline: Outline) -> bool:
    """Whether conversations are for evaluation: by their splits if known, else by their name."""
    if outline.splits:
        return outline.splits <= {"val", "test"}
    return bool(EVALUATION.search(name.lower()))


def warn(storage: Storage, corpus: Corpus, planned: dict[str, Outline], probe: bool) -> None:
    """Warn of evaluation media that are also in training, if one side is planned now and not yet stored."""
    stored = {name: load_outline(storage, name) for name in list_conversations(storage) if name not in planned}
    for train, evaluation in ((planned, {**planned, **stored}), (stored, planned)):
        for name, outline in evaluation.items():
            others = {other: data for other, data in train.items() if not is_evaluation(other, data)}
            if others and is_evaluation(name, outline):
                _warn(storage, corpus, name, outline, others, probe)


def _warn(
    storage: Storage, corpus: Corpus, name: str, outline: Outline, training: dict[str, Outline], probe: bool
) -> None:
    leaked = find_leaks(_items(corpus, training.values()), _items(corpus, [outline]), probe)
    if leaked:
        console.print(
            f"warning: {len(leaked)} media of the evaluation conversations {name} are also in training, first "
            f"{leaked[0].evaluation.uri} (same {leaked[0].by}); "
            f"see: avllm featurize leaks {shlex.join(training)} --against {shlex.quote(name)} "
            f"--store {shlex.quote(storage.url)}{' --probe' * probe}",
            markup=False,
        )


def _items(corpus: Corpus, outlines: Iterable[Outline]) -> list[MediaItem]:
    keys = pa.array({key for outline in outlines for key in outline.keys}, pa.string())
    return list(corpus.items.where(lambda rows: pc.is_in(rows.column("key"), keys)))


def leaks(
    train: Annotated[list[str], typer.Argument(help="Names of the training conversations.")],
    store: Annotated[str, typer.Option("--store", help="Their store: a folder or an fsspec URL.")],
    against: Annotated[list[str], typer.Option("--against", help="Evaluation conversations; may be repeated.")],
    against_store: Annotated[str | None, typer.Option(help="The store of these, if it is another.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Compare files of equal size too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead, for scripts.")] = False,
) -> None:
    """List media that are in training and in evaluation conversations; exit 1 if there are any."""
    training = media_of(Storage(store), train)
    evaluation = media_of(Storage(against_store or store), against)
    leaked = find_leaks(training, evaluation, probe, quiet=as_json)
    if as_json:
        entries = [
            {"by": f.by, "shared": f.value, "train": f.train.uri, "evaluation": f.evaluation.uri} for f in leaked
        ]
        say_json({"training": len(training), "evaluation": len(evaluation), "leaks": entries})
    else:
        _say(leaked, len(training), len(evaluation))
    raise typer.Exit(1 if leaked else 0)


def _say(found: Sequence[Leak], training: int, evaluation: int) -> None:
    table = make_table("by", "shared", "training file", "evaluation file")
    for leak in found[:SHOWN]:
        table.add_row(leak.by, *map(escape, (leak.value, leak.train.uri, leak.evaluation.uri)))
    if found:
        console.print(table)
    if found[SHOWN:]:
        console.print(f"... and {len(found) - SHOWN} more")
    console.print(f"{len(found)} of {evaluation} evaluation media are among the {training} of training")
