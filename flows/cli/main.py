"""The command line ``bitlm``. A fault that a user can act on is one line and exit code 1; any other is a traceback."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bitlm.config import PRESETS, configure
from bitlm.errors import BitLMError
from bitlm.steps import STAGES
from flows.cli import artifacts as artifacts_cli
from flows.cli import generate as generate_cli
from flows.cli import tokens as tokens_inspect
from flows.lifetime import INTERRUPTED, bounded_interrupt


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
    run = commands.add_parser("run", help="run the pipeline, or some of its stages")
    _add_selection(run)
    run.add_argument(
        "--verify",
        choices=("full", "size"),
        default="full",
        help="check existing artifacts by every byte, or by sizes (readers check each file they open in any case)",
    )
    run.set_defaults(command=_run)
    plan = commands.add_parser("plan", help="say what would run, what is reused, and why")
    _add_selection(plan)
    plan.set_defaults(command=_plan)
    artifacts_cli.add_artifacts_parser(commands)
    tokens_inspect.add_tokens_parser(commands)
    score = commands.add_parser("score", help="ROUGE of predictions against references")
    score.add_argument("--predictions", required=True, metavar="FILE", help="txt[.gz] one per line, parquet or jsonl")
    score.add_argument("--references", required=True, metavar="FILE")
    score.add_argument("--json", action="store_true")
    score.set_defaults(command=_score)
    generate_cli.add_generate_parser(commands)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all where none is named")
    parser.add_argument("--preset", default="tiny", help=", ".join(PRESETS))
    parser.add_argument(
        "--root", default="artifacts", metavar="DIR_OR_URL", help="where artifacts live (default: artifacts)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", dest="assignments")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="ROLE=ID",
        dest="inputs",
        help="an input by its id, for example tokens=tokens/tiny@v1",
    )
    parser.add_argument("--upstream", action="store_true", help="also make what the named stages need")
    parser.add_argument("--json", action="store_true", help="print results as JSON on standard output")


def _run(args: argparse.Namespace) -> int:
    from flows.show import show_run

    stages, inputs = _stages(args.stages), _inputs(args.inputs)
    config = configure(args.preset, args.assignments)
    summaries = _run_flow(stages, config, args, inputs)
    if args.json:
        print(json.dumps(summaries if len(summaries) != 1 else summaries[0], indent=2))
    else:
        show_run(summaries, args.root)
    return 0


def _run_flow(stages: list[str], config: Any, args: argparse.Namespace, inputs: dict[str, str]) -> list[dict[str, Any]]:
    """Everything that can be wrong is found before a server starts; then one flow: the stage's own, or the pipeline."""
    from flows.execute import check
    from flows.pipeline import pipeline
    from flows.server import prefect_api
    from flows.stages import FLOWS

    check(stages, config, args.root, inputs, args.upstream or not stages)
    with prefect_api():
        chosen = {"config": config, "root": args.root, "inputs": inputs, "verification": args.verify}
        if len(stages) == 1:
            return FLOWS[stages[0]](**chosen, upstream=args.upstream)
        return pipeline(**chosen, stages=stages, upstream=args.upstream or not stages)


def _plan(args: argparse.Namespace) -> int:
    from flows.cli.estimate import estimate_tokens, show_estimate, with_estimate
    from flows.execute import chosen_steps
    from flows.plan import plan
    from flows.show import show_plan

    config = configure(args.preset, args.assignments)
    steps = chosen_steps(_stages(args.stages), config, args.root, _inputs(args.inputs), upstream=True)
    planned = plan(steps, args.root)
    estimate = estimate_tokens(steps, config, args.root) if "tokens" in args.stages else None
    if args.json:
        print(json.dumps(with_estimate([p.as_json() for p in planned], estimate), indent=2))
        return 0
    show_plan(planned)
    if estimate is not None:
        show_estimate(estimate)
    return 0


def _score(args: argparse.Namespace) -> int:
    from bitlm.evaluate.rouge import score_files
    from flows.show import show_scores

    scores = score_files(args.predictions, args.references)
    print(json.dumps(scores, indent=2)) if args.json else show_scores(scores)
    return 0


def _stages(named: list[str]) -> list[str]:
    from bitlm.config.overrides import nearest
    from bitlm.errors import ConfigError

    for stage in named:
        if stage not in STAGES:
            raise ConfigError(f"stage {stage!r} is unknown{nearest(stage, STAGES)}; stages: {', '.join(STAGES)}")
    return named


def _inputs(pairs: list[str]) -> dict[str, str]:
    from bitlm.errors import ConfigError

    inputs = {}
    for pair in pairs:
        role, separator, artifact_id = pair.partition("=")
        if not separator or not artifact_id:
            raise ConfigError(f"--input {pair}: expected ROLE=ID, for example tokens=tokens/tiny@v1")
        inputs[role] = artifact_id
    return inputs


if __name__ == "__main__":
    sys.exit(main())
