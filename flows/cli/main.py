"""The command line ``bitlm``. A fault that a user can act on is one line and exit code 1; any other is a traceback."""

import argparse
import sys
from collections.abc import Sequence

from bitlm.errors import BitLMError
from bitlm_flows.cli import artifacts, generate, plan, run, score, tokens
from bitlm_flows.lifetime import INTERRUPTED, bounded_interrupt

COMMANDS = (run, plan, artifacts, tokens, score, generate)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with bounded_interrupt():
            return args.command(args)
    except BitLMError as error:
        print(f"bitlm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bitlm: interrupted; what is complete is kept, and the next run continues from it", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bitlm", description="BitLM: binary-code language models and their pipeline")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
