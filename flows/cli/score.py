"""``bitlm score``: ROUGE of predictions against references, from files, and the paired difference of two systems."""

import argparse
import sys
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
    parser.add_argument(
        "--against", metavar="FILE", help="predictions of another system for the same references: also the difference"
    )
    parser.add_argument(
        "--tokenizer",
        choices=("rouge", "unicode"),
        default="rouge",
        help="rouge (default): words of a-z and 0-9, stemmed, as in published figures; unicode: of any script, as is",
    )
    add_json(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    from bitlm.evaluate.rouge import score_files, unread_note  # pyarrow and rouge-score take seconds to load

    scores = score_files(args.predictions, args.references, tokenizer=args.tokenizer, against=args.against)
    remedy = "; --tokenizer unicode knows every script" if args.tokenizer == "rouge" else ""
    sides = {"": scores, "against: ": scores["against"]["scores"]} if args.against is not None else {"": scores}
    for side, found in sides.items():
        if (note := unread_note(found)) is not None:
            print(f"warning: {side}{note}{remedy}", file=sys.stderr)
    if args.json:
        print_json(scores)
    else:
        _show(scores)
    return 0


def _show(scores: Mapping[str, Any]) -> None:
    against = scores.get("against")
    table = Table("measure", "F1 ×100", "95% interval", *(["against", "difference", "95% interval"] if against else []))
    for measure, title in MEASURES.items():
        score = scores[measure]
        cells = [title, f"{score['f1']:.2f}", f"{score['low']:.2f} to {score['high']:.2f}"]
        if against:
            other, pair = against["scores"][measure], against["paired"][measure]
            interval = f"{pair['low']:+.2f} to {pair['high']:+.2f}"
            cells += [f"{other['f1']:.2f}", f"{pair['difference']:+.2f}", interval]
        table.add_row(*cells)
    output = console()
    output.print(f"{scores['examples']:,} examples · {scores['implementation']}", soft_wrap=True)
    output.print(table)
