"""The whole pipeline: corpus → tokenizer → tokens → pretrain → finetune → evaluate → report, for both heads.

``bitlm.steps.steps`` lists the steps in order; each runs as one Prefect task of its stage. ``python -m
bitlm_flows.pipeline`` takes the arguments of ``bitlm run``.
"""

from prefect import flow

from bitlm.config import PipelineConfig
from bitlm_flows.execute import Inputs, StageName, Summaries, execute
from bitlm_flows.selection import Selection
from bitlm_tasks.run import Verification

TINY = PipelineConfig()


@flow(name="pipeline")
def pipeline(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    stages: list[StageName] | None = None,
    upstream: bool = True,
    verification: Verification = "full",
) -> Summaries:
    """Make every artifact of the configuration (or of the named stages) that does not exist yet."""
    return execute(config, root, Selection(tuple(stages or ()), inputs or {}, upstream), verification)
