"""``bitlm score``: ROUGE of predictions against references, from files."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bitlm.evaluate.measures import MEASURES
from bitlm_flows.cli.options import add_json
from bitlm_flows.cli.output import print_json
from bitlm_tasks.console import console


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("score", help="ROUGE of predictions against references")
    parser.add_argument("--predictions", required=True, metavar="FILE", help="txt[.gz] one per line, parquet or jsonl")
    parser.add_argument("--references", required=True, metavar="FILE", help="the same formats, in the same order")
    add_json(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    from bitlm.evaluate.rouge import score_files  # pyarrow and rouge-score take seconds to load

    scores = score_files(args.predictions, args.references)
    if args.json:
        print_json(scores)
    else:
        _show(scores)
    return 0


def _show(scores: Mapping[str, Any]) -> None:
    table = Table(title=f"{scores['examples']:,} examples · {scores['implementation']}", title_justify="left")
    for column in ("measure", "F1 ×100", "95% interval"):
        table.add_column(column)
    for measure, title in MEASURES.items():
        score = scores[measure]
        table.add_row(title, f"{score['f1']:.2f}", f"{score['low']:.2f} to {score['high']:.2f}")
    console().print(table)
