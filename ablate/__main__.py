"""`python -m ablate CONFIG`: vary one thing at a time, over features that are there."""

from typing import Annotated

import typer

from store import load_settings
from store.console import make_app, run

app = make_app("Vary one thing at a time.")


@app.command()
def ablate(
    config: Annotated[str, typer.Argument(help="YAML of AblateConfig.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="field=value, such as seeds=[0,1].")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is and what it takes, and stop.")] = False,
) -> None:
    """Vary one thing at a time: featurize what is missing, train, ask; tables and plots. Goes on after any stop."""
    from ablate.settings import AblateConfig

    settings = load_settings(AblateConfig, config, overrides or ())
    from ablate.run import ablate as run_ablation

    run_ablation(settings, dry_run)


def main() -> None:
    """Entry point."""
    run(app, "stopped; the same command goes on from the last saved state, if save_every asked for any", extra="train")


if __name__ == "__main__":
    main()
