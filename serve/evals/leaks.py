"""Media of tasks that a checkpoint was trained on."""

from collections.abc import Mapping, Sequence

from featurize.leaks import find_leaks, media_of
from serve.evals.plan import Planned
from store import Storage, list_conversations
from store.console import console
from trainer.checkpoint.info import CheckpointInfo


def leaks_of(info: CheckpointInfo, store: str, planned: Sequence[Planned]) -> dict[str, str]:
    """By task, what is to be said of its media that the checkpoint was trained on; by the empty name, of all tasks."""
    storage = Storage(store)
    stored = list_conversations(storage)
    there = [name for name in info.trained_on if name in stored]
    trained_on, said = media_of(storage, there), dict[str, str]()
    for p in planned:
        if p.conversations in there:
            said[p.task.name] = f"the checkpoint was trained on conversations {p.conversations}"
        elif leaked := find_leaks(trained_on, media_of(storage, [p.conversations])):
            said[p.task.name] = (
                f"{len(leaked)} media are also in training, first {leaked[0].evaluation.uri} (same {leaked[0].by})"
            )
    if not info.trained_on:
        said[""] = "leaks were not checked: the checkpoint does not tell what it was trained on; see featurize leaks"
    elif not there:
        said[""] = f"leaks were not checked: {', '.join(info.trained_on)}, of training, are not in this store"
    return said


def say_leaks(leaks: Mapping[str, str]) -> None:
    """Print what `leaks_of` found."""
    for task, said in leaks.items():
        console.print(f"{task}: {said}" if task else said, markup=False)
