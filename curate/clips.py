"""The clips of a curation: those that have captions, and none that evaluation uses."""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from curate.captions import Captions
from curate.curation import CurationSettings, Perceived
from curate.ranking import shuffled
from store import Corpus, MediaItem, Storage, UserError, check_conversations, list_conversations, load_outline

EVALUATION_SPLITS = {"val", "test"}


def clips_of(storage: Storage, settings: CurationSettings, captions: Captions) -> list[str]:
    """The keys of the clips that are used, in random order.

    Raises:
        UserError: conversations that are named are not there, no clip has captions, or evaluation uses one.
    """
    for name in (*settings.clips_of, *settings.evaluation):
        check_conversations(storage, name)
    corpus = Corpus.load(storage)
    wanted = frozenset[str]().union(*(load_outline(storage, name).keys for name in settings.clips_of))
    keys = [item.key for item in corpus.items if not settings.clips_of or item.key in wanted]
    held = frozenset[str]().union(*(captions.held(keys, modality) for modality in _modalities(settings)))
    keys = [key for key in keys if key in held]
    if not keys:
        raise UserError(f"{storage.url}: no clip has the captions that 'mix' needs{_hint(settings)}")
    chosen = shuffled(keys, settings.seed, "clips")[: settings.clips]
    _refuse_leaks(storage, settings, corpus, frozenset(chosen))
    return chosen


def _modalities(settings: CurationSettings) -> set[Perceived]:
    return {cell.modality for cell in settings.mix.cells}


def _hint(settings: CurationSettings) -> str:
    return f" among those of {', '.join(settings.clips_of)}" if settings.clips_of else ""


def _refuse_leaks(storage: Storage, settings: CurationSettings, corpus: Corpus, chosen: frozenset[str]) -> None:
    """Refuse clips whose medium evaluation uses too, under another key or path as well."""
    for name in list_conversations(storage):
        outline = load_outline(storage, name)
        by_split = bool(outline.splits) and outline.splits <= EVALUATION_SPLITS
        if name not in settings.evaluation and not by_split:
            continue
        signs = {sign: item.key for item in corpus.items if item.key in outline.keys for sign in _signs(item)}
        leaked = [item for item in corpus.items if item.key in chosen and any(sign in signs for sign in _signs(item))]
        if leaked:
            raise UserError(
                f"field 'clips_of': {len(leaked)} of {len(chosen)} clips are also in the evaluation conversations "
                f"{name}, first {leaked[0].uri}; name conversations for training, such as {_training(storage, name)}"
            )


def _signs(item: MediaItem) -> Iterator[str]:
    """What tells that two items are of one medium; featurize leaks knows more signs."""
    yield item.uri
    yield PurePosixPath(item.uri.rstrip("/")).stem


def _training(storage: Storage, evaluation: str) -> str:
    others: Sequence[str] = [name for name in list_conversations(storage) if name != evaluation]
    stem = evaluation.rpartition("-")[0]
    return next(
        (name for name in others if stem and name.startswith(stem)), others[0] if others else "a training split"
    )
