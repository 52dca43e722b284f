"""`potstill chat`: a model on the terminal, or two of them in the arena."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import DataError, PotstillError, reading
from potstill.verbs import common, complete

if TYPE_CHECKING:
    from potstill.terminal.chat import Options, Speaker

HELP = "talk to a model of a run, or to any model folder"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    help_text = "a run's folder, name or recipe, or a model's folder"
    common.completed(parser.add_argument("run", nargs="?", metavar="RUN_OR_MODEL", help=help_text), complete.runs)
    help_text = "which of the run's models (default: the last)"
    common.completed(parser.add_argument("model", nargs="?", metavar="MODEL", help=help_text), complete.stages)
    parser.add_argument("--once", metavar="TEXT", help="ask this, print the answer, and end: for scripts")
    parser.add_argument("--endpoint", metavar="URL", help="talk to a server instead, such as http://localhost:8000/v1")
    parser.add_argument("--name", metavar="MODEL", help="the model's name as that server knows it")
    parser.add_argument("--key-env", metavar="NAME", help="the environment variable with the server's key")
    parser.add_argument(
        "--arena", nargs="*", metavar="MODEL", help="two models of these, or of all, answer, and you vote without names"
    )
    parser.add_argument("--voter", default="", metavar="NAME", help="who votes in the arena (default: the user's name)")
    parser.add_argument("--system", default="", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--temperature", type=common.within(0, 2), default=0.7, help="0 takes the likeliest token (default: 0.7)"
    )
    parser.add_argument(
        "--top-p",
        type=common.within(0.01, 1),
        default=0.95,
        help="sample from this share of likelihood (default: 0.95)",
    )
    parser.add_argument("--top-k", type=int, default=50, help="sample from so many tokens; 0: from all (default: 50)")
    parser.add_argument("--max-tokens", type=common.count, default=256, help="the longest answer (default: 256)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed and words give the same answers (default: 0)"
    )


def main(args: argparse.Namespace) -> int:
    from potstill.terminal.chat import Options

    options = Options(args.system, args.temperature, args.top_p, args.top_k, args.max_tokens, args.seed)
    if args.endpoint is None and args.run is None:
        raise DataError("command line", "nobody is named to talk to", "Name a run, a model's folder, or --endpoint URL")
    if args.arena is not None:
        from potstill.arena.terminal import meet

        with reading():
            meet(args.run or "", tuple(args.arena), options, args.voter)
        return 0
    return _talk(args, options)


def _talk(args: argparse.Namespace, options: "Options") -> int:
    from potstill.runs.made import find_model, is_model, sealed_models
    from potstill.runs.workspace import open_run
    from potstill.terminal.chat import Talk

    names: tuple[str, ...] = ()
    if args.endpoint is not None:
        speaker, load = _far(args), None
    else:
        with reading():
            name, path = find_model(args.run, args.model)
            names = () if is_model(args.run) else tuple(sealed_models(open_run(args.run)))
        speaker, load = _near(name, path), (lambda name: _near(*find_model(args.run, name))) if names else None
    talk = Talk(speaker, options, load, names)
    try:
        if args.once is None:
            talk.run()
        else:
            talk.ask(os.fsencode(args.once).decode("utf-8", "replace"))
    finally:
        talk.speaker.close()
    return 0


def _near(name: str, path: Path) -> "Speaker":
    from potstill.speakers import NearSpeaker

    return NearSpeaker(name, path)


def _far(args: argparse.Namespace) -> "Speaker":
    from potstill.speakers import FarSpeaker

    if args.run is not None or args.name is None:
        raise PotstillError(
            "--endpoint", "a server needs the name of its model, and no run", "Write: --endpoint URL --name MODEL"
        )
    return FarSpeaker(args.endpoint, args.name, args.key_env)
