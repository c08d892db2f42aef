"""What a bad file does to a run, and what is left of a run that is killed (-9) in the middle."""

import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.featurizers.clips import bad_files, clips
from benchmarks.featurizers.contenders import OURS, Case, Job, Settings, job
from benchmarks.featurizers.process import Spent
from store.console import Meter, console, make_table

GOOD = 4
BAD = "clip-0001-bad"  # among the good ones


def bad(case: Case, folder: Path, settings: Settings) -> None:
    """Run each on four good clips and a bad one, and print what becomes of both."""
    kinds = bad_files(folder)
    table = make_table(f"{case.what}; {GOOD} good clips and one that is", *kinds)
    names = (OURS, *case.peers)
    with Meter("bad files", len(names) * len(kinds), "runs") as meter:
        for name in names:
            cells = []
            for path in kinds.values():
                with tempfile.TemporaryDirectory() as out:
                    work = job(name, case, Path(out) / "clips", Path(out), settings)
                    work.clips.mkdir()
                    for clip in (*clips(folder, GOOD).iterdir(), path):
                        os.link(clip, work.clips / (f"{BAD}.mp4" if clip == path else clip.name))
                    work.plan()
                    cells.append(_outcome(work, work.run()))
                    meter.advance(1, name)
            table.add_row(name, *cells)
    console.print(table)


def _outcome(work: Job, spent: Spent) -> str:
    kept, record = work.kept, work.record(BAD)
    if record:
        what = f"recorded as {record}"
    elif spent.code:
        what = f"the run ends: {spent.said[-1].replace(f'{work.clips}/', '')[:120]}"
    else:
        what = "passes as a whole film" if BAD in kept else "left out in silence"
    return f"{what}; {len(kept - {BAD})} of {GOOD} kept"


def killed(case: Case, folder: Path, settings: Settings, count: int) -> None:
    """Kill each once half of its clips are done, run it again, and print what was kept and what was encoded twice."""
    table = make_table(
        f"{case.what}; {count} clips", "encoded when killed", "kept", "encoded by a second run", "then kept"
    )
    names = (OURS, *case.peers)
    with Meter("killed", len(names), "contenders") as meter:
        for name in names:
            with tempfile.TemporaryDirectory() as out:
                work = job(name, case, clips(folder, count), Path(out), settings)
                work.plan()
                first = work.run(lambda work=work: work.encoded(0) >= count / 2)  # type: ignore[misc]
                if first.code != -signal.SIGKILL:
                    raise SystemExit(f"{name}: status {first.code} before it was killed; take more clips")
                encoded, kept, restart = work.encoded(0), len(work.kept), time.time()
                work.run()
                cells = (encoded, kept, work.encoded(restart), len(work.kept))
            table.add_row(name, *map(str, cells))
            meter.advance(1, name)
    console.print(table)
