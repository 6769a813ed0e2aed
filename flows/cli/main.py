"""The command line ``bitlm``. A fault that a user can act on is one line and exit code 1; any other is a traceback."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from bitlm.errors import BitLMError, ConfigError
from bitlm.text import one_line
from bitlm_flows.cli import artifacts, generate, plan, run, score, tokens
from bitlm_flows.cli.output import standard_output
from bitlm_flows.environment import check_environment
from bitlm_flows.lifetime import supervised

COMMANDS = (run, plan, artifacts, tokens, score, generate)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a command. Without arguments those of the process are taken, and the command runs in a child
    process that is ended in time after Ctrl-C; this one then never returns from here."""
    if argv is None:
        return supervised(lambda: main(sys.argv[1:]))
    with standard_output():
        try:
            return _call(argv)
        except BitLMError as error:
            print(f"bitlm: {one_line(str(error))}", file=sys.stderr)
            return 1


def _call(argv: Sequence[str]) -> int:
    for argument in argv:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(
                f"the argument {argument} is not text in {sys.getfilesystemencoding()}: use UTF-8 (LANG=C.UTF-8), also "
                "in the names of files"
            )
    args = _parser().parse_args(argv)
    check_environment()
    return args.command(args)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message}; `{self.prog} --help` lists what it takes")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bitlm", description="BitLM: binary-code language models and their pipeline")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
