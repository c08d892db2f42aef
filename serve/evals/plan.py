"""The plan of an evaluation: tasks with their questions in a store, and those of them that are asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from serve.checks import ORDER, check_senses, check_store, open_store
from serve.evals.answers import Answer, Key, key_of, limited
from serve.evals.tasks import TASKS, Query, Task, load_tasks, queries, senses_needed
from store import UserError, list_conversations, load_conversations
from store.settings import guess
from trainer.checkpoint.info import CheckpointInfo


@dataclass(frozen=True)
class Planned:
    """A task, the name of its conversations in the store, its queries, and those of them that are asked."""

    task: Task
    conversations: str
    queries: Sequence[Query]
    chosen: Sequence[int]

    @property
    def asked(self) -> list[Query]:
        """The queries that are asked."""
        return [self.queries[number] for number in self.chosen]

    def key(self, query: Query) -> Key:
        """The key of a query's answer."""
        return key_of(self.task, self.conversations, query)

    def given(self, answers: Mapping[Key, Answer]) -> list[tuple[Query, Answer]]:
        """The queries that are asked and have an answer."""
        return [(query, answers[self.key(query)]) for query in self.asked if self.key(query) in answers]


def plan_tasks(store: str, names: Sequence[str], limit: int | None, tasks_file: Path | None) -> list[Planned]:
    """The questions of tasks that are called `task` or `task=conversations`.

    Raises:
        UserError: there is no such task, or the store lacks its conversations or they lack what it needs.
    """
    known = load_tasks(tasks_file) if tasks_file else TASKS
    storage = open_store(store, ORDER)
    there, load, planned = list_conversations(storage), cache(lambda name: load_conversations(storage, name)), []
    for name in names:
        task, _, conversations = name.partition("=")
        conversations = conversations or task
        if task not in known:
            raise UserError(f"no task {task!r}{guess(task, known)}; there are: {', '.join(known)}")
        if conversations not in there:
            raise UserError(
                f"task {task}: {store} has no conversations {conversations!r}; it has: {', '.join(there) or 'none'}; "
                f"name them as {task}=NAME, or plan them: avllm featurize plan FILE --store {store} --name {task}"
            )
        made = queries(known[task], load(conversations))
        planned.append(Planned(known[task], conversations, made, _chosen(made, limit)))
    return planned


def check_asking(info: CheckpointInfo, store: str, planned: Sequence[Planned]) -> None:
    """Refuse a checkpoint or a store without a column that is needed, before the model is loaded.

    Raises:
        UserError: names it.
    """
    needed = {sense for p in planned for query in p.asked for sense in senses_needed(query)}
    check_senses(info, sorted(needed))
    check_store(store, info, sorted(needed), ORDER)


def _chosen(made: Sequence[Query], limit: int | None) -> list[int]:
    """The numbers of the queries that are asked: of pairs both or none."""
    units: dict[object, list[int]] = {}
    for number, query in enumerate(made):
        units.setdefault(query.pair or number, []).append(number)
    size = max((len(unit) for unit in units.values()), default=1)
    whole = list(units.values())
    return [number for place in limited(len(whole), limit and max(1, limit // size)) for number in whole[place]]
