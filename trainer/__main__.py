"""`python -m trainer train CONFIG`, or the same under torchrun for several processes."""

from typing import Annotated

import typer

from store import load_settings
from store.console import make_app, run

app = make_app("Train projectors and LLM on cached features.")


@app.callback()
def trainer() -> None:
    """Train projectors and LLM on cached features."""


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML of TrainConfig.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, such as lr=1e-3.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Join conversations with columns and stop.")] = False,
) -> None:
    """Run one stage of training."""
    from trainer.settings import TrainConfig

    settings = load_settings(TrainConfig, config, overrides or ())
    from trainer.stage import train as run_stage

    run_stage(settings, dry_run)


def main() -> None:
    """Entry point."""
    run(app, "stopped; the last checkpoint saved (save_every) is kept, but training cannot resume from it yet")


if __name__ == "__main__":
    main()
