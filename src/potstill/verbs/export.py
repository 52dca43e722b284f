"""`potstill export`: a model in a folder of its own, ready for others."""

import argparse
import sys
from pathlib import Path

from potstill.errors import reading

HELP = "write a model for others: for the Hub, for llama.cpp (GGUF), or its adapter alone"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument(
        "model", metavar="RUN[:MODEL]", help="a run and one of its models (the last), or a model's folder"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder that is made")
    parser.add_argument(
        "--format", choices=("hub", "gguf", "adapter"), default="hub", help="hub: whole weights (default)"
    )
    parser.add_argument(
        "--gguf-type",
        default="f16",
        metavar="TYPE",
        help="f32, f16 (default), bf16, q8_0, q5_0, q4_0, ...; with llama-cpp-python q6_k, q5_k_m, q4_k_m, ...",
    )
    parser.add_argument("--title", default="", help="the name on the card (default: the model's in the run)")
    parser.add_argument("--licence", default="", help="as the Hub abbreviates it: apache-2.0 (default: unknown)")
    parser.add_argument("--language", action="append", default=[], metavar="CODE", help="en; may be given again")
    parser.add_argument("--notes", default="", metavar="TEXT", help="what else the card should say")
    parser.add_argument("--base", metavar="MODEL", help="what the adapter is loaded onto: OWNER/NAME, or a folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that stands there")


@reading()
def main(args: argparse.Namespace) -> int:
    from potstill.errors import ModelError
    from potstill.shipping.export import Wish, export
    from potstill.shipping.gguf_file import TYPES
    from potstill.validation import nearest

    kind = args.gguf_type.lower()
    if kind not in TYPES:
        what = f"there is no type '{args.gguf_type}'{nearest(kind, TYPES)}"
        raise ModelError("--gguf-type", what, f"Choose one of: {', '.join(TYPES)}")
    wish = Wish(
        args.format, kind, args.title, args.licence, tuple(args.language), args.notes, args.base, args.overwrite
    )
    found = export(args.model, args.to, wish)
    sys.stdout.write(
        "".join(f"{line}\n" for line in (*found, f"{args.to} is whole. Read its README.md before you share it."))
    )
    return 0
