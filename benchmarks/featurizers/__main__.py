"""`featurize run` beside its peers, whole processes in turns.

    python -m benchmarks.featurizers race --python .venv-peers/bin/python
    python -m benchmarks.featurizers failures --python .venv-peers/bin/python

The clips are made here: 22 of 28 are H.264 and AAC in mp4, 6 VP9 and Opus in webm, about 10 s each, 320 x 240 to
640 x 360; more clips are the same under other names. Each contender is a process as a user starts it, `featurize run`
or a script after the peer's documentation (`scripts`); CPU seconds include all its descendants'. Each runs on few clips
and on many: their difference is the cost without the start, and the rest is the start. So the few must give each of our
workers a shard; otherwise the many would also pay for a worker's start. Files are in the page cache. Decoders and torch
use their default number of threads (decord one), and nothing here sets how torch's threads wait.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.featurizers import failures as trials
from benchmarks.featurizers.contenders import CASES, Case, Settings
from benchmarks.featurizers.race import race as run_race
from store.console import make_app, run

app = make_app("`featurize run` beside its peers: how fast, and what bad files and kills do.")
Python = Annotated[str, typer.Option(help="The peers' interpreter.")]
Folder = Annotated[Path, typer.Option(help="Where the clips are made, and left.")]
Only = Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CASES)}; repeatable.")]
Words = Annotated[list[str] | None, typer.Argument(help="Further settings of `featurize run`, such as cpus=2.")]


@app.command()
def race(
    python: Python = sys.executable,
    folder: Folder = Path("build/clips"),
    only: Only = None,
    few: Annotated[int | None, typer.Option(help="Clips of the short run, instead of the case's own.")] = None,
    many: Annotated[int | None, typer.Option(help="Clips of the long run.")] = None,
    rounds: Annotated[int, typer.Option(help="Times each is run, in turns.")] = 3,
    words: Words = None,
) -> None:
    """Print CPU and wall seconds of each, with and without its start, and ours against the best of the others."""
    for case in _cases(only or CASES):
        chosen = replace(case, few=few or case.few, many=many or case.many)
        run_race(chosen, folder, Settings(python, None, tuple(words or ())), rounds)


@app.command()
def failures(
    python: Python = sys.executable,
    folder: Folder = Path("build/clips"),
    only: Only = None,
    clips: Annotated[int, typer.Option(help="Clips of the run that is killed.")] = 28,
    shard_size: Annotated[int, typer.Option(help="Clips in a shard of ours: what a kill can cost each worker.")] = 4,
    words: Words = None,
) -> None:
    """Print what each does with an empty file, half a film and a text, and what is left after kill -9."""
    settings = Settings(python, shard_size, tuple(words or ()))
    for case in _cases(only or ("light", "sound")):
        trials.bad(case, folder, settings)
        trials.killed(case, folder, settings, clips)


def _cases(names: list[str] | tuple[str, ...] | dict[str, Case]) -> list[Case]:
    return [CASES[name] for name in names]


if __name__ == "__main__":
    run(app)
