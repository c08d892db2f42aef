"""avllm: train and ask an audio-visual LLM from features that were computed once.

`avllm featurize ...` is `python -m featurize ...`, and so for store, trainer, serve and ablate.
"""

import importlib
import sys

__version__ = "0.1.0"

COMMANDS = {
    "featurize": "media files -> frozen encoders -> columns of a store, on one machine or as Ray jobs",
    "store": "list, verify, export, import, merge and send what a store holds",
    "trainer": "columns and conversations -> projectors and LLM",
    "serve": "ask a trained checkpoint about a clip, or held-out conversations",
    "ablate": "vary one thing at a time, over features that are there",
}


def usage() -> str:
    """The help text: one line for each command."""
    rows = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return f"avllm {__version__}\n\nUsage: avllm COMMAND [ARGS]...   (avllm COMMAND --help tells more)\n\n{rows}"


def main() -> None:
    """Run `avllm COMMAND ...` as `python -m COMMAND ...` does."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command == "--version":
        print(__version__)
    elif command in ("--help", "-h"):
        print(usage())
    elif command in COMMANDS:
        sys.argv = [f"avllm {command}", *sys.argv[2:]]
        importlib.import_module(f"{command}.__main__").main()
    else:
        sys.exit(f"avllm: no command {command!r}; there are: {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
