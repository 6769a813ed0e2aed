"""The command line ``bitlm``: a file for each command."""

from flows.cli.main import main

__all__ = ["main"]
