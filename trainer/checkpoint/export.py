"""Export: a saved state of a run becomes a checkpoint."""

from pathlib import Path

from store import UserError
from store.console import console
from trainer.checkpoint.folder import save_checkpoint
from trainer.checkpoint.states import States
from trainer.checkpoint.tensors import SavedTensors, check_same_llm
from trainer.checkpoint.weights import gather_weights
from trainer.llm import load_llm
from trainer.model import AudioVisualLM
from trainer.trainable import choose_trained, precision


def export(output: Path, folder: Path, step: str) -> None:
    """Make a saved state of a run into a checkpoint; `gather_weights` merges its adapters.

    Args:
        output: folder of the run.
        folder: where the checkpoint is written; must not exist.
        step: a number, `last` or `best`.

    Raises:
        UserError: there is no such state, or `folder` exists.
    """
    if not output.is_dir():
        raise UserError(f"{output}: no such folder; expected the 'output' of a run")
    states = States(output)
    steps = states.steps()
    chosen = {"last": steps[-1] if steps else None, "best": states.best()}.get(
        step, int(step) if step.isdigit() else None
    )
    if not steps:
        done = f"; the finished run is {output}/checkpoint" if (output / "checkpoint").is_dir() else ""
        raise UserError(f"{output} has no saved states: a run with save_every=N saves some{done}")
    if chosen is None or chosen not in steps:
        listed = ", ".join(map(str, steps))
        raise UserError(
            f"--step {step}: {output} has no such state; saved steps: {listed}; accepted: a step, last, best"
        )
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    state = states.state(chosen)
    llm, tokenizer = load_llm(state.config.model, precision(state.config))
    check_same_llm(state, llm, output)
    model = AudioVisualLM(llm, state.checkpoint.grid.widths(state.checkpoint.columns))
    choose_trained(state.config, model)
    SavedTensors(states.path(chosen)).load_weights(model)
    save_checkpoint(folder, llm, gather_weights(model, precision(state.config)), tokenizer, state.checkpoint)
    console.print(f"saved {folder}: step {chosen} of {output}")
