"""`avllm trainer train CONFIG`, or the same under torchrun for several processes; and export of saved states."""

import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from store import load_settings
from store.console import console, make_app, run

app = make_app("Train projectors and LLM on cached features.")
Overrides = Annotated[list[str] | None, typer.Argument(help="field=value, such as lr=1e-3.")]


@app.callback()
def launched(local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None) -> None:
    """Train projectors and LLM on cached features."""  # DeepSpeed's launcher adds the option; LOCAL_RANK says the same


@app.command()
def train(
    config: Annotated[
        str, typer.Argument(help="A YAML file of TrainConfig, or the name of a shipped one, such as demo-stage1.")
    ],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would train on and take, and stop.")] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="Of a dry run: processes a launcher would start.")] = None,
    device: Annotated[str | None, typer.Option(help="Of a dry run: a GPU, such as H100; else what is here.")] = None,
    mfu: Annotated[float, typer.Option(min=0.01, max=1, help="Of a dry run: assumed model FLOP utilization.")] = 0.4,
    conversations: Annotated[
        int | None, typer.Option(min=1, help="Of a dry run without data: how many, of the paper's lengths.")
    ] = None,
) -> None:
    """Run one stage of training; a run that stopped goes on from its last saved state."""
    from trainer.checkpoint.states import States, state_to_resume
    from trainer.checks import check_plan, check_run
    from trainer.settings import TrainConfig

    settings = load_settings(TrainConfig, config, overrides or ())
    if dry_run:
        from trainer.planning import earlier

        settings = earlier.with_first_llm(settings, config)
        check_plan(settings, ranks, reads_sources=not conversations)
        from trainer.planning import estimate  # after the checks: it takes seconds to import torch

        estimate.dry_run(settings, ranks, device, mfu, conversations)
    else:
        check_run(settings)
        state_to_resume(settings)  # before torch is imported
        from trainer import stage

        try:
            stage.train(settings)
        except KeyboardInterrupt:
            steps = States(settings.output).steps()
            console.print(
                f"step {steps[-1]} is saved: the same command goes on there"
                if steps
                else "no step is saved: the same command begins anew; save_every=N saves some"
            )
            raise


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="`output` of a run, with saved states.")],
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint is written.")],
    step: Annotated[str, typer.Option(help="A saved step, `last`, or `best` on held-out conversations.")] = "last",
) -> None:
    """Make a saved state into a checkpoint: a Hugging Face folder with a card, adapters merged.

    A finished run has its last step's in OUTPUT/checkpoint already; its newest saved state lies before that.
    """
    from trainer.checkpoint.export import export as export_state

    export_state(output, folder, step)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def ablate(context: typer.Context) -> None:
    """The old name of `avllm ablate`."""
    sys.argv = ["ablate", *context.args]
    runpy.run_module("ablate", run_name="__main__")


def main() -> None:
    """Entry point."""
    run(app, extra="train")


if __name__ == "__main__":
    main()
