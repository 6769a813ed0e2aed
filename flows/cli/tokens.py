"""``bitlm tokens inspect``: where any token of a tokens artifact comes from."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from bitlm.artifacts.store import Store
from bitlm.storage.requests import redact

if TYPE_CHECKING:
    from bitlm.data.reading.provenance import TokenProvenance


def add_tokens_parser(commands: Any) -> None:
    """Add ``tokens`` to the commands of ``bitlm``."""
    parser = commands.add_parser("tokens", help="look into a tokens artifact")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="the text around a token, its document and the row it came from")
    inspect.add_argument("id", metavar="ARTIFACT", help="tokens/NAME[@vN]")
    inspect.add_argument("--at", required=True, type=int, metavar="N", help="place of the token in its split, from 0")
    inspect.add_argument("--split", default="train", help="train (default) or validation")
    inspect.add_argument("--root", default="artifacts", metavar="DIR_OR_URL")
    inspect.add_argument("--json", action="store_true", help="print JSON on standard output")
    inspect.set_defaults(command=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from bitlm.data.reading.provenance import trace_token  # pyarrow and the tokenizer take a while

    store = Store(args.root)
    found = trace_token(store, store.load(args.id), args.split, args.at)
    if args.json:
        print(json.dumps(asdict(found), ensure_ascii=False, indent=2))
    else:
        _show(found)
    return 0


def _show(found: "TokenProvenance") -> None:
    console = Console(highlight=False)
    lines = [f"{found.artifact}  {found.split} token {found.at:,}: id {found.token_id}"]
    lines.append(f"shard     {found.shard}, token {found.shard_token:,}")
    document = found.document
    if document is None:
        lines.append("document  none: it fills up the last group of the shard")
    else:
        place = "its end token" if document.token == document.length else f"token {document.token:,}"
        lines.append(f"document  {document.id}: {place} of {document.length:,}")
        lines.append(f"source    {redact(document.url)} (ETag {document.etag}), row {document.row:,}")
    console.print(Text("\n".join(lines)), soft_wrap=True)
    console.print()
    console.print(Text.assemble(found.before, (found.token, "reverse bold"), found.after))
