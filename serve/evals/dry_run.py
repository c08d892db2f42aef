"""`serve evaluate --dry-run`: what an evaluation would ask, take and cost."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.checks import ORDER, check_checkpoint
from serve.evals.answers import Answer, Key, limited, read_answers
from serve.evals.folder import folder_of
from serve.evals.judge import Judging
from serve.evals.judge_cost import say_cost
from serve.evals.leaks import leaks_of, say_leaks
from serve.evals.plan import Planned, check_asking, plan_tasks
from serve.evals.run import Part
from serve.evals.tasks import Query
from store.console import Meter, console, make_table
from trainer.checkpoint.info import read_info

SAMPLE = 32  # questions that are asked, to tell the hours


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
    judging: Judging | None,
) -> None:
    """Print what an evaluation would ask and cost, how long that takes by a sample of its questions, and leaks.

    What judges would be asked is known where the questions are answered (`only="scores"` asks no sample); elsewhere
    answers of the sample stand for those to come.

    Raises:
        UserError: as `evaluate`.
    """
    info = read_info(checkpoint) if only == "scores" else check_checkpoint(checkpoint, ORDER)
    planned = plan_tasks(store, names, limit, tasks_file)
    if only != "scores":
        check_asking(info, store, planned)
    say_leaks(leaks_of(info, store, planned))
    folder = folder_of(checkpoint, out)
    answers = read_answers(folder)
    sample = [] if only == "scores" else _ask_sample(checkpoint, store, planned, vllm)
    judged = [p for p in planned if p.task.judged]
    if judging and judged:
        say_cost(judging, [(p.task, p.given(answers) + _like(p, answers, sample)) for p in judged], folder)


def _like(planned: Planned, answers: Mapping[Key, Answer], sample: Sequence[Answer]) -> list[tuple[Query, Answer]]:
    """The queries that have no answer yet, with those of a sample in turn."""
    left = [query for query in planned.asked if planned.key(query) not in answers]
    return list(zip(left, itertools.cycle(sample), strict=False))


def _ask_sample(checkpoint: str, store: str, planned: Sequence[Planned], vllm: str | None) -> list[Answer]:
    """Ask a sample of the questions, and print what all would take."""
    from serve.assistant import Assistant
    from serve.evals.ask import all_asked, ask

    asked = all_asked([(p.task, p.conversations, p.asked) for p in planned])
    sample = [asked[number] for number in limited(len(asked), SAMPLE)]
    answers = dict[Key, Answer]()
    with (
        Assistant.load(checkpoint, vllm) as assistant,
        Meter("asking a sample", len(sample), "questions") as meter,
    ):

        def keep(key: Key, answer: Answer) -> None:
            answers[key] = answer
            meter.advance(1)

        ask(assistant, store, sample, keep)
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
