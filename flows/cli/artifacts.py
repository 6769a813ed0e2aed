"""``bitlm artifacts list | show | lineage | diff | verify``."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from bitlm import storage
from bitlm.artifacts import Record, Store, diff, lineage, tree
from bitlm.artifacts.lineage import human_bytes, key_metrics
from bitlm.errors import ArtifactError, BitLMError
from bitlm.storage import redact
from bitlm.text import one_line, printable
from bitlm_flows.cli.options import NARROW, add_json, add_root
from bitlm_flows.cli.output import print_json
from bitlm_tasks.console import console as new_console


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("artifacts", help="list, show, compare and verify what was made")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    ID = "stage/name@vN, or stage/name for the newest"

    list_parser = _add_action(actions, "list", _list, "all artifacts, or those of a stage or name")
    list_parser.add_argument("which", nargs="?", metavar="STAGE[/NAME]")
    show = _add_action(actions, "show", _show, "the record of an artifact")
    show.add_argument("id", metavar="ID", help=ID)
    lineage_parser = _add_action(actions, "lineage", _lineage, "an artifact and all it was made from")
    lineage_parser.add_argument("id", metavar="ID", help=ID)
    diff_parser = _add_action(actions, "diff", _diff, "what differs between what two artifacts were made from")
    diff_parser.add_argument("a", metavar="A", help=ID)
    diff_parser.add_argument("b", metavar="B")
    verify = _add_action(actions, "verify", _verify, "check records and files, of the named artifacts or of all")
    verify.add_argument("ids", nargs="*", metavar="ID", help=ID)
    verify.add_argument("--sizes-only", action="store_true", help="do not read the contents")


def _add_action(
    actions: Any, name: str, action: Callable[[argparse.Namespace, Store], int], help: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=help)
    add_root(parser)
    add_json(parser)
    parser.set_defaults(command=run, action=action)
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 only if all that was asked for exists and, for ``verify``, is intact."""
    try:
        return args.action(args, Store(args.root))
    except BitLMError as error:
        if args.json:
            _print_json({"error": str(error)})
        raise


def _list(args: argparse.Namespace, store: Store) -> int:
    stage, _, name = (args.which or "").partition("/")
    records = store.records(stage or None, name or None)
    if not records and (args.which or not storage.exists(store.root)):
        raise ArtifactError(f"there is no artifact{f' {args.which}' if args.which else ''} in {redact(store.root)}")
    if args.json:
        _print_json([_summary(store, record) for record in records])
        return 0
    console = new_console()
    console.print(_listing(records, narrow=console.width < NARROW))
    console.print(f"artifacts in {one_line(redact(store.root))}", soft_wrap=True)
    return 0


def _listing(records: Sequence[Record], *, narrow: bool) -> Table:
    """A row for each record. On a narrow terminal the metrics stand below the id, so that no column breaks a word."""
    columns = ("artifact", "made", "size") if narrow else ("artifact", "made", "took", "files", "size", "metrics")
    wrapped = "artifact" if narrow else "metrics"
    table = Table(*(Column(name, no_wrap=name != wrapped) for name in columns))
    for record in records:
        made = f"{record.finished.astimezone():%Y-%m-%d %H:%M}"
        size, metrics = human_bytes(record.bytes), key_metrics(record)
        if narrow:
            table.add_row(f"{record.id}\n  {metrics}" if metrics else record.id, made, size)
        else:
            table.add_row(record.id, made, f"{record.seconds:,.1f} s", f"{len(record.files):,}", size, metrics)
    return table


def _show(args: argparse.Namespace, store: Store) -> int:
    record = store.load(args.id)
    fields = record.model_dump(mode="json") | {"path": store.url(record.id)}
    if args.json:
        _print_json(fields)
        return 0
    files = fields.pop("files")
    about = _table("", "", show_header=False, title=record.id)
    for key, value in fields.items():
        about.add_row(key, one_line(value) if isinstance(value, str) else _json(value))
    contents = _table("file", "bytes", "sha256")
    for entry in files:
        contents.add_row(one_line(entry["path"]), f"{entry['bytes']:,}", entry["sha256"][:16])
    console = new_console()
    console.print(about)
    console.print(contents)
    return 0


def _lineage(args: argparse.Namespace, store: Store) -> int:
    record = store.load(args.id)
    if args.json:
        _print_json([_summary(store, one) for one in lineage(store, record)])
    else:
        new_console().print(tree(store, record), soft_wrap=True)
    return 0


def _diff(args: argparse.Namespace, store: Store) -> int:
    a, b = store.load(args.a), store.load(args.b)
    changes = diff(a, b)
    if args.json:
        _print_json([{"key": change.key, "old": change.old, "new": change.new} for change in changes])
        return 0
    if not changes:
        print(f"{a.id} and {b.id} were made from the same")
        return 0
    table = _table("field", a.id, b.id)
    for change in changes:
        table.add_row(one_line(change.key), one_line(str(change.old)), one_line(str(change.new)))
    new_console().print(table)
    return 0


def _verify(args: argparse.Namespace, store: Store) -> int:
    faults: dict[str, str | None] = {}
    ids = args.ids or store.ids()
    if not ids:
        raise ArtifactError(f"there is no artifact in {redact(store.root)}")
    for artifact_id in ids:
        try:
            record = store.load(artifact_id)
            artifact_id = record.id
            store.verify(record, contents=not args.sizes_only)
            faults[artifact_id] = None
        except ArtifactError as error:
            faults[artifact_id] = str(error)
    if args.json:
        _print_json([{"id": one, "ok": fault is None, "error": fault} for one, fault in faults.items()])
    else:
        table = _table("artifact", "verified")
        for one, fault in faults.items():
            table.add_row(one_line(one), Text("ok", "green") if fault is None else Text(one_line(fault), "red"))
        new_console().print(table)
    return 0 if all(fault is None for fault in faults.values()) else 1


def _summary(store: Store, record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "path": store.url(record.id),
        "fingerprint": record.fingerprint,
        "files": len(record.files),
        "bytes": record.bytes,
        "finished": record.finished.isoformat(),
        "seconds": record.seconds,
        "metrics": record.metrics,
        "inputs": {role: entry.id for role, entry in record.inputs.items()},
    }


def _json(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False, indent=1))


def _print_json(value: Any) -> None:
    print_json(value, escaped=False)


def _table(first: str, *others: str, **options: Any) -> Table:
    """The first column, ids and names, is never cut; the others wrap, so that nothing is lost on a narrow terminal."""
    columns = [Column(name, overflow="fold") for name in others]
    return Table(Column(first, no_wrap=True, overflow="fold"), *columns, **options)
