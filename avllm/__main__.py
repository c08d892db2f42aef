"""The console script: `avllm featurize ...` is `python -m featurize ...`, and so for the other packages."""

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from avllm import PACKAGES, __version__
from store.console import make_app, run


class Packages(TyperGroup):
    """The packages and the commands of this file.

    `main` runs a package itself, so here one is imported for shell completion alone: some take a second.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The packages, then the commands of this file."""
        return [*PACKAGES, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command; of a package that is not imported, with what the help page shows of it."""
        if cmd_name not in PACKAGES:
            return super().get_command(ctx, cmd_name)
        if ctx.resilient_parsing or "_AVLLM_COMPLETE" in os.environ:
            return typer.main.get_command(importlib.import_module(f"{cmd_name}.__main__").app)
        return typer.core.TyperCommand(cmd_name, help=PACKAGES[cmd_name])


app = make_app("Train and ask an audio-visual LLM from features that were computed once.", Packages, completion=True)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train and ask an audio-visual LLM from features that were computed once."""
    if version:
        print(__version__)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the configuration files.")],
    store: Annotated[str | None, typer.Option(help="The store: a folder or an fsspec URL.")] = None,
    conversations: Annotated[str | None, typer.Option(help="Their name in the store.")] = None,
    model: Annotated[str | None, typer.Option(help="The LLM: a Hugging Face folder or hub name.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of the machine that trains; 0 for a CPU.")] = None,
    memory: Annotated[int | None, typer.Option(min=1, help="GB of each GPU.")] = None,
) -> None:
    """Write configuration files for your store, LLM and GPUs, which need no overrides. Asks for what is not given."""
    from avllm.init import write

    write(folder, store, conversations, model, gpus, memory)


@app.command()
def configs(
    show: Annotated[str | None, typer.Argument(help="Print this one, such as trainer/demo-stage1.")] = None,
) -> None:
    """List the shipped configurations, which commands take by name; or print one."""
    from avllm.configs import list_shipped, print_shipped

    if show:
        print_shipped(show)
    else:
        list_shipped()


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Option(help="A shipped configuration or a YAML file that is to be run.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="A store that is to be read or written.")] = None,
) -> None:
    """Say what this machine has and lacks, and how to mend it; exit 1 if something is missing that you asked about."""
    from avllm.doctor import examine

    if not examine(config, store):
        raise typer.Exit(1)


@app.command(hidden=True)
def reference(folder: Annotated[Path, typer.Argument(help="Where the pages are written.")]) -> None:
    """Write the pages of docs/reference anew."""
    from avllm.reference import write

    write(folder, typer.main.get_command(app))


def main() -> None:
    """Run `avllm COMMAND ...` as `python -m COMMAND ...` does."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in PACKAGES and "_AVLLM_COMPLETE" not in os.environ:
        sys.argv = [f"avllm {command}", *sys.argv[2:]]
        run(lambda: importlib.import_module(f"{command}.__main__").main())
    else:
        sys.argv[0] = "avllm"
        run(app)


if __name__ == "__main__":
    main()
