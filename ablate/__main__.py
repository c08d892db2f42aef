"""`avllm ablate CONFIG`: vary one setting at a time, on stored features."""

from typing import Annotated

import typer

from store import load_settings
from store.console import make_app
from store.console import run as run_app

app = make_app("Vary one thing at a time.")


@app.command()
def ablate(
    config: Annotated[
        str, typer.Argument(help="A YAML file of AblateConfig, or the name of a shipped one, such as demo.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, such as seeds=[0,1].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is and what it takes, and stop.")] = False,
    ranks: Annotated[int | None, typer.Option(min=1, help="Of a dry run: processes a launcher would start.")] = None,
    device: Annotated[str | None, typer.Option(help="Of a dry run: a GPU, such as H100; else what is here.")] = None,
) -> None:
    """Vary one thing at a time: featurize what is missing, train, ask; tables and plots. Goes on after any stop."""
    from ablate.settings import AblateConfig

    settings = load_settings(AblateConfig, config, overrides or ())
    from ablate import run

    if dry_run:
        run.dry_run(settings, ranks, device)
    else:
        run.ablate(settings)


def main() -> None:
    """Entry point."""
    run_app(app, "stopped; the same command goes on from the last saved state", extra="train")


if __name__ == "__main__":
    main()
