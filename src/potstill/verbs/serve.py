"""`potstill serve`: models behind an OpenAI-compatible server."""

import argparse
import os
import sys

from potstill.errors import PotstillError, reading
from potstill.verbs import common

HELP = "serve models of a run to any OpenAI client"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("run", metavar="RUN[:MODEL]", help="a run (its last model), one of its models, or any folder")
    parser.add_argument("more", nargs="*", metavar="MORE", help="the same again, or other models of the run before")
    parser.add_argument("--port", type=common.port, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    parser.add_argument(
        "--engine",
        choices=("auto", "vllm", "transformers"),
        default="auto",
        help="auto: vLLM where it is installed, there is a GPU and one model is named; else transformers",
    )
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the key to ask for")
    parser.add_argument("--open", action="store_true", help="let everybody in who reaches --host, without a key")
    parser.add_argument("--verbose", action="store_true", help="a line for each request, on standard error")


def main(args: argparse.Namespace) -> int:
    from potstill.runs.made import find_models

    with reading():
        models = find_models([args.run, *args.more])
    key = _key(args.api_key_env)
    from potstill.serving.run import is_loopback, serve  # imports torch
    from potstill.serving.vllm import Place, hand_over, why_not_vllm

    if not (key or args.open or is_loopback(args.host)):
        what = f"others could reach {args.host}, and no key is asked for"
        raise PotstillError("--host", what, "Add --api-key-env NAME, or --open to let everybody in")
    place = Place(args.host, args.port, key)
    if args.engine != "transformers":
        why = why_not_vllm(models)
        if args.engine == "vllm" or not why:
            hand_over(models, place)
        sys.stderr.write(f"transformers answers: {why}.\n")
    serve(models, place, verbose=args.verbose)
    return 0


def _key(name: str | None) -> str:
    """The key in that variable. An error where there is none: nobody is let in by mistake."""
    if name is None:
        return ""
    key = os.environ.get(name, "")
    if not key or not (key.isascii() and key.isprintable()):
        what = f"the variable {name} {'is not set' if not key else 'holds a sign that no key has'}"
        raise PotstillError("--api-key-env", what, f"Set it: export {name}=...")
    return key
