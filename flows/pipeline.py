"""The whole pipeline: corpus → tokenizer → tokens → pretrain → finetune → evaluate → report, for both heads.

``bitlm.steps.steps`` lists the steps in order; each runs as one Prefect task of its stage.
"""

import sys

from prefect import flow

from bitlm.config import PipelineConfig
from flows.execute import Inputs, Stage, Summaries, execute
from tasks.run import Verification

TINY = PipelineConfig()


@flow(name="pipeline")
def pipeline(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    stages: list[Stage] | None = None,
    upstream: bool = True,
    verification: Verification = "full",
) -> Summaries:
    """Make every artifact of the configuration (or of the named stages) that does not exist yet."""
    return execute(stages or [], config, root, inputs, upstream, verification)


if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
