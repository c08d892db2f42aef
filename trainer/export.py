"""What is done with a trained model in one process: a saved state made into a checkpoint, and held-out questions."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from rich.table import Table

from store import Storage, UserError
from store.console import Meter, console
from trainer.checkpoint import gather_weights, load_checkpoint, save_checkpoint
from trainer.distributed import PlainEngine
from trainer.evaluation import HeldOut, summary
from trainer.llm import check_packing, load_llm
from trainer.model import AudioVisualLM
from trainer.settings import Sense, Source
from trainer.stage import choose_trained, precision
from trainer.states import States, check_same_llm

MAX_TOKENS = 4096  # rows of a held-out conversation and of a pass


def export(output: Path, folder: Path, step: str) -> None:
    """Make a saved state of a run into a checkpoint.

    Args:
        output: of the run.
        folder: where the checkpoint is written; must not exist.
        step: a number, `last` or `best`.

    Raises:
        UserError: there is no such state, or something stands at `folder`.
    """
    states = States(output)
    there = states.steps()
    chosen = {"last": there[-1] if there else None, "best": states.best()}.get(
        step, int(step) if step.isdigit() else None
    )
    if not there:
        raise UserError(f"{output} has no saved states: save_every=N saves some; a finished run is {output}/checkpoint")
    if chosen is None or chosen not in there:
        has = ", ".join(map(str, there))
        raise UserError(f"--step {step}: {output} has no such state; saved steps: {has}; accepted: a step, last, best")
    if folder.exists():
        raise UserError(f"{folder}: exists; name a folder that does not")
    state = states.state(chosen)
    llm, tokenizer = load_llm(state.config.model, precision(state.config))
    check_same_llm(state, llm, output)
    model = AudioVisualLM(llm, state.checkpoint.grid.widths(state.checkpoint.columns))
    choose_trained(state.config, model)
    states.load(chosen).load_weights(model)
    save_checkpoint(folder, llm, gather_weights(model, precision(state.config)), tokenizer, state.checkpoint)
    console.print(f"saved {folder}: step {chosen} of {output}")


def evaluate(
    checkpoint: Path, store: str, conversations: str, ask: str | None, out: Path | None, limit: int | None
) -> dict[str, float]:
    """Ask held-out conversations of a store, with the columns that a checkpoint was trained on.

    Args:
        checkpoint: of this trainer.
        store: of the conversations' media.
        conversations: their name.
        ask: the sense by which audio-visual ones are asked; None asks each as it stands.
        out: file for what was judged.
        limit: conversations asked.

    Returns:
        Loss and share of exact answers, of all and of each modality.

    Raises:
        UserError: `ask` names no sense, `out` is a folder, or the store lacks conversations or columns.
    """
    sense: Sense | None = next((s for s in get_args(Sense) if s == ask), None)
    if ask is not None and sense is None:
        raise UserError(f"--ask {ask}: accepted: {', '.join(get_args(Sense))}")
    if out:
        if out.is_dir():
            raise UserError(f"--out {out}: is a folder; name a file")
        out.parent.mkdir(parents=True, exist_ok=True)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, tokenizer, info = load_checkpoint(checkpoint, dtype)
    longest = min(MAX_TOKENS, getattr(model.llm.config, "max_position_embeddings", MAX_TOKENS))
    check_packing(model.llm.config, longest, str(checkpoint))
    columns = {modality: spec.folder for modality, spec in info.columns.items()}
    source = Source(store=store, conversations=conversations)
    held_out = HeldOut([source], columns.get("visual"), columns.get("audio"), info.grid, limit, sense)
    engine = PlainEngine(model.requires_grad_(False))
    with Meter("asking", len(held_out), "conversations") as meter:
        judged = held_out.judge(engine, tokenizer, info.prompt, longest, meter)
    found = summary(engine, judged)
    table = Table("asked by", "conversations", "loss", "exact")
    for modality in ("", *sorted({j.modality for j in judged})):
        at = f"_{modality}" if modality else ""
        count = sum(modality in ("", j.modality) for j in judged)
        table.add_row(
            modality or "all", str(count), f"{found[f'eval_loss{at}']:.4f}", f"{found[f'eval_exact{at}']:.3f}"
        )
    console.print(table)
    if out:
        report = {
            "checkpoint": str(checkpoint),
            "store": store,
            "conversations": conversations,
            "ask": ask,
            "columns": columns,
            "digests": {modality: spec.fingerprint for modality, spec in info.columns.items()},
            "steps": info.steps,
            "attention": engine.attention,
            "summary": found,
            "judged": [asdict(j) for j in judged],
        }
        Storage(out.parent).write(out.name, json.dumps(report, indent=1).encode())
        console.print(f"saved {out}")
    return found
