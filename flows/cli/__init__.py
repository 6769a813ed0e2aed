"""The command line ``bitlm``: ``main`` and a file for each command.

The file of a command has ``add_parser(commands)``, which adds the command to the parser, and sets ``command`` to the
function that runs it: parsed arguments → exit code. Imports inside functions are those of packages that take seconds to
load (torch, Prefect, Ray, pyarrow, rouge-score), so that every command loads only what it uses.
"""

from bitlm_flows.cli.main import main

__all__ = ["main"]
