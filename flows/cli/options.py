"""The options that several commands share."""

import argparse

from bitlm.config import PRESETS, PipelineConfig, configure
from bitlm.config.overrides import nearest
from bitlm.errors import ConfigError
from bitlm.steps import STAGES

NARROW = 110  # columns of a terminal, below which tables take their short form


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", default="artifacts", metavar="DIR_OR_URL", help="where artifacts live (default: artifacts)"
    )


def add_json(parser: argparse.ArgumentParser, help: str = "print JSON on standard output") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that say which steps are meant, with which configuration."""
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all if none is named")
    parser.add_argument("--preset", default="tiny", help=f"{', '.join(PRESETS)} (default: tiny)")
    add_root(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        dest="assignments",
        help="change a value of the preset, for example pretrain.steps=2000; may be given several times",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="ROLE=ID",
        dest="inputs",
        help="an input by its id, for example tokens=tokens/tiny@v1",
    )
    parser.add_argument("--upstream", action="store_true", help="also make what the named stages need")
    add_json(parser, help="print results as JSON on standard output")


def configuration(args: argparse.Namespace) -> PipelineConfig:
    """Raises ConfigError as ``configure``."""
    return configure(args.preset, args.assignments)


def stages(args: argparse.Namespace) -> tuple[str, ...]:
    """Raises ConfigError for a name that is no stage."""
    for stage in args.stages:
        if stage not in STAGES:
            raise ConfigError(f"stage {stage!r} is unknown{nearest(stage, STAGES)}; stages: {', '.join(STAGES)}")
    return tuple(args.stages)


def inputs(args: argparse.Namespace) -> dict[str, str]:
    """Role → id. Raises ConfigError for what is no such pair, and for two ids of one role."""
    ids = {}
    for pair in args.inputs:
        role, _, artifact_id = pair.partition("=")
        if not role or not artifact_id:
            raise ConfigError(f"--input {pair}: expected ROLE=ID, for example tokens=tokens/tiny@v1")
        if role in ids:
            raise ConfigError(f"--input {role} is given twice, {ids[role]} and {artifact_id}: name one")
        ids[role] = artifact_id
    return ids
