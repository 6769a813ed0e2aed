"""``bitlm tokens inspect``: where any token of a tokens artifact comes from."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bitlm.artifacts.store import Store
from bitlm.storage import redact
from bitlm.text import one_line, printable
from bitlm_flows.cli.options import add_json, add_root
from bitlm_flows.cli.output import print_json
from bitlm_tasks.console import console as new_console

if TYPE_CHECKING:
    from bitlm.data.reading.provenance import TokenProvenance


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("tokens", help="look into a tokens artifact")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="the text around a token, its document and the row it came from")
    inspect.add_argument("id", metavar="ARTIFACT", help="tokens/NAME[@vN]")
    inspect.add_argument("--at", required=True, type=int, metavar="N", help="place of the token in its split, from 0")
    inspect.add_argument("--split", default="train", help="train (default) or validation")
    add_root(inspect)
    add_json(inspect)
    inspect.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    from bitlm.data.reading.provenance import trace_token  # pyarrow and the tokenizer take seconds to load

    store = Store(args.root)
    place = trace_token(store, store.load(args.id), args.split, args.at)
    if args.json:
        print_json(asdict(place), escaped=False)
    else:
        _show(place)
    return 0


def _show(place: "TokenProvenance") -> None:
    lines = [f"{place.artifact}  {place.split} token {place.at:,}: id {place.token_id}"]
    lines.append(f"shard     {place.shard}, token {place.shard_token:,}")
    document = place.document
    if document is None:
        lines.append("document  none: it fills up the last group of the shard")
    else:
        position = "its end token" if document.token == document.length else f"token {document.token:,}"
        lines.append(f"document  {document.id}: {position} of {document.length:,}")
        lines.append(f"source    {redact(document.url)} (ETag {document.etag}), row {document.row:,}")
    console = new_console()
    console.print("\n".join(map(one_line, lines)), soft_wrap=True)
    console.print()
    before, token, after = map(printable, (place.before, place.token, place.after))
    console.print(Text.assemble(before, (token, "reverse bold"), after))
