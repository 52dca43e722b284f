"""`potstill completion`: the script that makes a shell complete our verbs, options, recipes, runs and stages."""

import argparse
import sys

HELP = "print the script that makes a shell complete potstill's words"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def main(args: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["potstill"], shell=args.shell))
    return 0
