"""Evaluate a checkpoint on held-out conversations of a store: loss, and share of answers given word for word."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.table import Table

from store import Sense, Storage
from store.console import Meter, console
from trainer.checkpoint.folder import load_checkpoint
from trainer.engine import PlainEngine
from trainer.evaluation import HeldOut, summary
from trainer.llm import check_packing
from trainer.settings import Source

MAX_TOKENS = 4096  # longest held-out conversation, and longest pass, in positions


def evaluate(
    checkpoint: Path, store: str, conversations: str, ask: Sense | None, out: Path | None, limit: int | None
) -> dict[str, float]:
    """Evaluate a checkpoint on held-out conversations, with the columns it was trained on.

    Args:
        checkpoint: folder of a checkpoint of this trainer.
        store: holds the conversations and the features of their media.
        conversations: their name in the store.
        ask: if set, only audio-visual conversations are asked, and get this modality only; None asks all as they are.
        out: JSON file for the judged answers; None writes none.
        limit: how many conversations to ask; None asks all.

    Returns:
        Loss and exact-match share, over all conversations and by modality.

    Raises:
        UserError: the store lacks conversations or columns.
    """
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, tokenizer, info = load_checkpoint(checkpoint, dtype)
    longest = min(MAX_TOKENS, getattr(model.llm.config, "max_position_embeddings", MAX_TOKENS))
    check_packing(model.llm.config, longest, str(checkpoint))
    columns = {modality: spec.folder for modality, spec in info.columns.items()}
    source = Source(store=store, conversations=conversations)
    held_out = HeldOut([source], columns.get("visual"), columns.get("audio"), info.grid, limit, ask)
    engine = PlainEngine(model.requires_grad_(False))
    with Meter("asking", len(held_out), "conversations") as meter:
        judged = held_out.judge(engine, tokenizer, info.prompt, longest, meter)
    scores = summary(engine, judged)
    table = Table("asked by", "conversations", "loss", "exact")
    for modality in ("", *sorted({j.modality for j in judged})):
        suffix = f"_{modality}" if modality else ""
        count = sum(modality in ("", j.modality) for j in judged)
        table.add_row(
            modality or "all", str(count), f"{scores[f'eval_loss{suffix}']:.4f}", f"{scores[f'eval_exact{suffix}']:.3f}"
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
            "summary": scores,
            "judged": [asdict(j) for j in judged],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        Storage(out.parent).write(out.name, json.dumps(report, indent=1).encode())
        console.print(f"saved {out}")
    return scores
