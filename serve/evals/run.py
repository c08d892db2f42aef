"""`serve evaluate`: ask tasks, keep every answer, score what is there, report."""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurize.leaks import find_leaks, media_of
from serve.evals.answers import Answer, AnswerFile, Key, key_of, limited, read_answers, share
from serve.evals.judge import Judge, Judgements, judge_all
from serve.evals.judge_cost import say_cost
from serve.evals.report import write_report
from serve.evals.scores import score
from serve.evals.tasks import TASKS, Query, Task, load_tasks, queries
from store import Settings, Storage, UserError, list_conversations, load_conversations, parse_settings
from store.console import Meter, console, make_table
from store.publish import publishing

if TYPE_CHECKING:
    from trainer.checkpoint.folder import CheckpointInfo

SAMPLE = 32  # questions that a dry run asks, to tell the hours
Part = Literal["answers", "scores"]
Failed = Literal["wrong", "left-out"]


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


class RunInfo(Settings):
    """What all answers in a folder have in common; answers of anything else are refused.

    Attributes:
        checkpoint: digest of its weights.
        columns: fingerprint of each column it reads, by sense.
        store: the store of the conversations and features.
        engine: what generates, and in which precision.
        version: of avllm, and a digest of the code that asks and scores; both may differ.
    """

    checkpoint: str
    columns: dict[str, str]
    store: str
    engine: str
    version: str


def evaluate(
    checkpoint: str,
    store: str,
    names: Sequence[str],
    *,
    out: Path | None = None,
    only: Part | None = None,
    limit: int | None = None,
    failed: Failed = "wrong",
    tasks_file: Path | None = None,
    vllm: str | None = None,
    judge: Judge | None = None,
) -> None:
    """Ask tasks and report their scores. A second call goes on where a killed one stopped.

    Questions are shared between processes that are started with RANK and WORLD_SIZE, as torchrun does.

    Args:
        checkpoint: folder of a checkpoint.
        store: holds the tasks' conversations, and the features of their media.
        names: tasks, each as `task` or `task=conversations`.
        out: folder of answers and reports; None takes `evaluation` beside the checkpoint.
        only: `answers` does not score, `scores` does not ask.
        limit: the most questions of a task, spread evenly; its scores are marked as partial.
        failed: whether questions whose features cannot be used count as wrong or are left out.
        tasks_file: YAML with more tasks.
        vllm: URL of a vLLM server that serves the checkpoint; None generates here.
        judge: scores the tasks that need a judge; None leaves them without scores.

    Raises:
        UserError: a task, its conversations or a column does not exist, or the answers are another checkpoint's.
    """
    rank, ranks = ranks_of(os.environ)
    planned = plan_tasks(store, names, limit, tasks_file)  # before what imports torch: mistakes cost a second
    from trainer.checkpoint.folder import read_info

    info = read_info(checkpoint)
    folder = _folder(checkpoint, out)
    if judge and ranks > 1:
        raise UserError("one process asks a judge: share the questions with --only answers, then run --only scores")
    if only != "scores":
        claim(folder, _info_of(checkpoint, info, store, vllm))
        with AnswerFile(folder, rank, ranks) as file:
            _ask(checkpoint, store, planned, folder, file, rank, ranks, vllm)
    answers = read_answers(folder)
    lacking = sum(p.key(query) not in answers for p in planned for query in p.asked)
    if only == "answers" or (lacking and only != "scores"):
        console.print(f"answers: {folder}; {lacking} to be asked by other ranks" if lacking
                      else f"answers: {folder}")  # fmt: skip
        return
    if not any(p.key(query) in answers for p in planned for query in p.asked):
        raise UserError(f"{folder}: holds no answers to these tasks; run without --only scores")
    run = parse_settings(RunInfo, _read_run(folder), str(folder / "run.json"))
    given = [_given(p, answers) for p in planned]
    judged = _judged(judge, planned, given, folder) if judge else {}
    scores = [
        score(p.task, p.conversations, p.queries, pairs, failed, judged.get(number))
        for number, (p, pairs) in enumerate(zip(planned, given, strict=True))
    ]
    leaks = leaks_of(info, store, planned)
    write_report(folder, run.model_dump(), scores, leaks)


def ranks_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """This process's rank, and how many share the questions, from RANK and WORLD_SIZE; 0 and 1 without them.

    Raises:
        UserError: one is set without the other, or they are no such numbers.
    """
    given = [environment.get(name) for name in ("RANK", "WORLD_SIZE")]
    if given == [None, None]:
        return 0, 1
    if not all(value and value.isdecimal() for value in given) or int(str(given[0])) >= int(str(given[1])):
        raise UserError(
            f"RANK={given[0]}, WORLD_SIZE={given[1]}: set both, as torchrun does, RANK below WORLD_SIZE, or neither"
        )
    return int(str(given[0])), int(str(given[1]))


def plan_tasks(store: str, names: Sequence[str], limit: int | None, tasks_file: Path | None) -> list[Planned]:
    """The questions of tasks that are called `task` or `task=conversations`.

    Raises:
        UserError: there is no such task, or the store lacks its conversations or they lack what it needs.
    """
    known = load_tasks(tasks_file) if tasks_file else TASKS
    storage = Storage(store)
    if not storage.exists("corpus.parquet"):
        raise UserError(f"{store}: no store is there")
    there, load, planned = list_conversations(storage), cache(lambda name: load_conversations(storage, name)), []
    for name in names:
        task, _, conversations = name.partition("=")
        conversations = conversations or task
        if task not in known:
            raise UserError(f"no task {task!r}; there are: {', '.join(known)}")
        if conversations not in there:
            raise UserError(
                f"task {task}: {store} has no conversations {conversations!r}; it has: {', '.join(there) or 'none'}; "
                f"name them as {task}=NAME, or plan them: python -m featurize plan FILE --store {store} --name {task}"
            )
        made = queries(known[task], load(conversations))
        planned.append(Planned(known[task], conversations, made, _chosen(made, limit)))
    return planned


def _chosen(made: Sequence[Query], limit: int | None) -> list[int]:
    """The numbers of the queries that are asked: of pairs both or none."""
    units: dict[object, list[int]] = {}
    for number, query in enumerate(made):
        units.setdefault(query.pair or number, []).append(number)
    size = max((len(unit) for unit in units.values()), default=1)
    whole = list(units.values())
    return [number for place in limited(len(whole), limit and max(1, limit // size)) for number in whole[place]]


def dry_run(
    checkpoint: str,
    store: str,
    names: Sequence[str],
    *,
    out: Path | None,
    only: Part | None,
    limit: int | None,
    tasks_file: Path | None,
    vllm: str | None,
    judge: Judge | None,
) -> None:
    """Print what an evaluation would ask and cost, how long that takes by a sample of its questions, and leaks.

    What the judge would be asked is known where the questions are answered (`only="scores"` asks no sample); elsewhere
    answers of the sample stand for those to come.

    Raises:
        UserError: as `evaluate`.
    """
    planned = plan_tasks(store, names, limit, tasks_file)
    from trainer.checkpoint.folder import read_info

    info = read_info(checkpoint)
    _say_leaks(leaks_of(info, store, planned))
    folder = _folder(checkpoint, out)
    answers = read_answers(folder)
    sample = [] if only == "scores" else _ask_sample(checkpoint, store, planned, vllm)
    judged = [p for p in planned if p.task.judged]
    if judge and judged:
        say_cost(judge, [(p.task, _given(p, answers) + _like(p, answers, sample)) for p in judged], folder)


def _like(planned: Planned, answers: Mapping[Key, Answer], sample: Sequence[Answer]) -> list[tuple[Query, Answer]]:
    """The queries that have no answer yet, with those of a sample in turn."""
    left = [query for query in planned.asked if planned.key(query) not in answers]
    return list(zip(left, itertools.cycle(sample), strict=False))


def _folder(checkpoint: str, out: Path | None) -> Path:
    return out or Path(checkpoint).resolve().parent / "evaluation"


def _ask_sample(checkpoint: str, store: str, planned: Sequence[Planned], vllm: str | None) -> list[Answer]:
    """Ask a sample of the questions, and print what all would take."""
    from serve.assistant import Assistant
    from serve.evals.ask import all_asked, ask

    asked = all_asked([(p.task, p.conversations, p.asked) for p in planned])
    sample = [asked[number] for number in limited(len(asked), SAMPLE)]
    assistant, answers = Assistant.load(checkpoint, vllm), dict[Key, Answer]()
    with Meter("asking a sample", len(sample), "questions") as meter:

        def keep(key: Key, answer: Answer) -> None:
            answers[key] = answer
            meter.advance(1)

        ask(assistant, store, sample, keep)
    assistant.close()
    table = make_table("task", "conversations", "questions", "at most tokens each", "positions of a prompt")
    for p in planned:
        lengths = [answers[each.key].positions for each in sample if each.task is p.task]
        positions = f"{sum(lengths) / len(lengths):.0f}" if lengths else ""
        table.add_row(p.task.name, p.conversations, f"{len(p.chosen):,}", str(p.task.max_new_tokens), positions)
    console.print(table)
    tokens = sum(answer.tokens for answer in answers.values())
    hours = len(asked) / meter.rate / 3600
    console.print(
        f"{len(asked):,} questions to ask; of a sample of {len(sample)}: {tokens / len(sample):.1f} tokens an answer, "
        f"{meter.rate:.2f} answers/s with its start: about {hours:.2f} hours on one such device"
    )
    return list(answers.values())


def _ask(
    checkpoint: str, store: str, planned: Sequence[Planned], folder: Path, file: AnswerFile, rank: int, ranks: int,
    vllm: str | None,
) -> None:  # fmt: skip
    """Ask what a rank has to and has not asked yet."""
    from serve.evals.ask import all_asked, ask

    asked = all_asked([(p.task, p.conversations, p.asked) for p in planned])
    answers = read_answers(folder)
    mine = [asked[number] for number in share(len(asked), rank, ranks)]
    left = [each for each in mine if each.key not in answers or answers[each.key].failures]
    if ranks > 1 or len(left) < len(mine):
        console.print(f"rank {rank} of {ranks}: {len(mine):,} questions, {len(mine) - len(left):,} answered before")
    if not left:
        return
    from serve.assistant import Assistant

    assistant = Assistant.load(checkpoint, vllm)
    failures = 0

    def keep(key: Key, answer: Answer) -> None:
        nonlocal failures
        file.write(key, answer)
        failures += bool(answer.failures)
        meter.advance(1, f"{failures} without features" if failures else "")

    with Meter("asking", len(left), "questions") as meter:
        ask(assistant, store, left, keep)
    assistant.close()


def _given(planned: Planned, answers: Mapping[Key, Answer]) -> list[tuple[Query, Answer]]:
    """The queries of a task that have an answer."""
    return [(query, answers[planned.key(query)]) for query in planned.asked if planned.key(query) in answers]


def _judged(
    judge: Judge, planned: Sequence[Planned], given: Sequence[Sequence[tuple[Query, Answer]]], folder: Path
) -> dict[int, Judgements]:
    """The judgements of the tasks that need a judge, by the task's number."""
    numbers = [number for number, p in enumerate(planned) if p.task.judged]
    found = judge_all(judge, [(planned[number].task, given[number]) for number in numbers], folder)
    return dict(zip(numbers, found, strict=True))


def leaks_of(info: "CheckpointInfo", store: str, planned: Sequence[Planned]) -> dict[str, str]:
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


def _say_leaks(leaks: Mapping[str, str]) -> None:
    for task, said in leaks.items():
        console.print(f"{task}: {said}" if task else said, markup=False)


def _info_of(checkpoint: str, info: "CheckpointInfo", store: str, vllm: str | None) -> RunInfo:
    import torch

    from trainer.checkpoint.folder import checkpoint_digest

    precision = "bfloat16" if torch.cuda.is_available() else "float32"
    return RunInfo(
        checkpoint=checkpoint_digest(checkpoint, info),
        columns={sense: spec.fingerprint for sense, spec in sorted(info.columns.items())},
        store=Storage(store).url,
        engine=f"vllm, prompts in {precision}" if vllm else f"transformers, {precision}",
        version=f"{version('avllm')}, code {_code_digest()}",
    )


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def claim(folder: Path, run: RunInfo) -> None:
    """Write what the answers will have in common, or check that it is what they have, if there are any.

    Raises:
        UserError: the folder holds answers of something else.
    """
    path = folder / "run.json"
    if path.exists() and any(answers.stat().st_size for answers in folder.glob("answers*.jsonl")):
        before = parse_settings(RunInfo, _read_run(folder), str(path))
        differing = [n for n in RunInfo.model_fields if n != "version" and getattr(before, n) != getattr(run, n)]
        if differing:
            raise UserError(
                f"{folder}: holds answers of another {differing[0]}: {getattr(before, differing[0])}, "
                f"not {getattr(run, differing[0])}; name another folder with --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(path) as temporary:
        temporary.write_text(run.model_dump_json(indent=1))


def _read_run(folder: Path) -> dict[str, object]:
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder}: no evaluation: there is no run.json in it; run without --only scores")
    content: dict[str, object] = json.loads(path.read_text())
    return content
