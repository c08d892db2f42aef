"""`serve evaluate`: ask tasks, keep every answer, score what is there, report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from serve.checks import ORDER, check_checkpoint, check_output
from serve.evals.agreement import agreement_of
from serve.evals.answers import Answer, AnswerFile, Key, read_answers, share
from serve.evals.folder import claim, folder_of, info_of, read_run
from serve.evals.judge import Judging, judge_all
from serve.evals.judgements import Given, Judgements
from serve.evals.leaks import leaks_of
from serve.evals.plan import Planned, check_asking, plan_tasks
from serve.evals.report import write_report
from serve.evals.scores import TaskScores, score
from store import UserError
from store.console import Meter, console
from trainer.checkpoint.info import read_info

Part = Literal["answers", "scores"]
Failed = Literal["wrong", "left-out"]


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
    judging: Judging | None = None,
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
        judging: scores the tasks that need a judge; None leaves them without scores.

    Raises:
        UserError: a task, its conversations or a column does not exist, or the answers are another checkpoint's.
    """
    rank, ranks = ranks_of(os.environ)
    if judging and ranks > 1:
        raise UserError("one process asks a judge: share the questions with --only answers, then run --only scores")
    info = read_info(checkpoint) if only == "scores" else check_checkpoint(checkpoint, ORDER)
    folder = folder_of(checkpoint, out)
    planned = plan_tasks(store, names, limit, tasks_file)
    check_output(folder, is_folder=True)
    if only != "scores":
        check_asking(info, store, planned)
    if only != "scores":
        claim(folder, info_of(checkpoint, info, store, vllm))
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
    run, given = read_run(folder), [p.given(answers) for p in planned]
    scores = _scored(planned, given, failed, judging, folder)
    write_report(folder, run.model_dump(), scores, leaks_of(info, store, planned))


def _scored(
    planned: Sequence[Planned], given: Sequence[Sequence[Given]], failed: Failed, judging: Judging | None, folder: Path
) -> list[TaskScores]:
    """The scores of each task, by the first judge where it needs one; those of other judges are reported with them."""
    numbers = [number for number, p in enumerate(planned) if p.task.judged]
    found = judge_all(judging, [(planned[n].task, given[n]) for n in numbers], folder) if judging and numbers else []
    return [
        _task_scores(p, pairs, failed, [judge[numbers.index(number)] for judge in found if number in numbers])
        for number, (p, pairs) in enumerate(zip(planned, given, strict=True))
    ]


def _task_scores(planned: Planned, given: Sequence[Given], failed: Failed, judges: Sequence[Judgements]) -> TaskScores:
    def by(judge: Judgements | None) -> TaskScores:
        return score(planned.task, planned.conversations, planned.queries, given, failed, judge)

    first, *others = map(by, judges or (None,))
    if not others:
        return first
    agreement = agreement_of(given, judges, verdicts=planned.task.scorer == "judged")
    return replace(first, others=others, agreement=agreement)


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

    failures = 0

    def keep(key: Key, answer: Answer) -> None:
        nonlocal failures
        file.write(key, answer)
        failures += bool(answer.failures)
        meter.advance(1, f"{failures} without features" if failures else "")

    with Assistant.load(checkpoint, vllm) as assistant, Meter("asking", len(left), "questions") as meter:
        ask(assistant, store, left, keep)
