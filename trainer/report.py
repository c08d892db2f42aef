"""What a run prints about its data before it trains."""

import itertools
import json
from pathlib import Path

from store.console import console
from trainer.checkpoint.info import is_checkpoint
from trainer.data import TrainingData
from trainer.evaluation import HeldOut
from trainer.settings import TrainConfig

NAMED = 5  # left-out conversations named for each reason


def report_data(data: TrainingData, config: TrainConfig, held_out: HeldOut | None, write: bool = True) -> None:
    """Print what is trained on and what was left out; `left_out.jsonl` in the output folder lists the latter.

    Args:
        data: of the run.
        config: of the run.
        held_out: conversations for evaluation, which should not be trained on.
        write: whether to write that file.
    """
    counts = data.counts()
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    console.print(f"{sum(counts.values())} usable conversations ({kinds}), {data.size} in an epoch")
    if config.visual and config.audio and set(counts) == {"audio_visual"} and not config.augment:
        console.print("none begins by sight or by sound alone, so to be asked so will be new to the model: give each")
        console.print("sense conversations of its own, or set augment={visual: 0.5, audio: 0.5}", markup=False)
    if config.stage == 2 and not is_checkpoint(config.model):
        console.print(f"{config.model} has no projectors, so new ones are trained; stage 2 usually begins with the")
        console.print("checkpoint of stage 1")
    if data.left_out:
        path = Path(config.output) / "left_out.jsonl"
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w") as file:
                file.writelines(json.dumps(conversation._asdict()) + "\n" for conversation in data.left_out)
        console.print(f"{len(data.left_out)} conversations left out{f': {path}' if write else ''}")
        for reason, count in sorted(data.left_out.reasons().items()):
            ids = [conversation.id for conversation in itertools.islice(data.left_out.of(reason), NAMED)]
            console.print(f"  {count} {reason}: {', '.join(ids)}{' ...' * (count > NAMED)}", markup=False)
    same, media = held_out.overlap(data.pools) if held_out else (0, 0)
    if same or media:
        console.print(
            f"warning: of {len(held_out or ())} held-out conversations {same} are also trained on, of {media} others "
            "the media are: their loss says little about what is new"
        )
    columns = ", ".join(spec.folder for spec in data.specs.values())
    several = "s" * (config.global_batch > 1)
    console.print(f"columns {columns}; {data.steps} steps of {config.global_batch} conversation{several}")
