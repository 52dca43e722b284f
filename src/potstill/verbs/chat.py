"""`potstill chat`: a model on the terminal."""

import argparse

from potstill.errors import reading
from potstill.verbs import common, complete

HELP = "talk to a model of a run, or to any model folder"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    help_text = "a run's folder, name or recipe, or a model's folder"
    common.completed(parser.add_argument("run", metavar="RUN_OR_MODEL", help=help_text), complete.runs)
    help_text = "which of the run's models (default: the last)"
    common.completed(parser.add_argument("model", nargs="?", metavar="MODEL", help=help_text), complete.stages)
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
    from potstill.chat import Options, chat
    from potstill.made import find_model

    with reading():
        name, path = find_model(args.run, args.model)
    options = Options(args.system, args.temperature, args.top_p, args.top_k, args.max_tokens, args.seed)
    chat(name, path, options)
    return 0
