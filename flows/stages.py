"""Each stage as a flow of its own. Its inputs are found through the configuration, or named by id in ``inputs``."""

from prefect import Flow, flow

from bitlm.config import PipelineConfig
from bitlm.steps import STAGES, Stage
from bitlm_flows.execute import Inputs, Summaries, execute
from bitlm_flows.selection import Selection
from bitlm_tasks.run import Verification

TINY = PipelineConfig()


def _flow(stage: Stage) -> Flow:
    """The flow of one stage. All have the same parameters, which a Prefect deployment shows as a form."""

    def run(
        config: PipelineConfig = TINY,
        root: str = "artifacts",
        inputs: Inputs = None,
        upstream: bool = False,
        verification: Verification = "full",
    ) -> Summaries:
        return execute(config, root, Selection((stage.name,), inputs or {}, upstream), verification)

    run.__name__ = run.__qualname__ = stage.name
    return flow(name=stage.name, description=stage.purpose)(run)


FLOWS = {name: _flow(stage) for name, stage in STAGES.items()}

# A deployment names its flow as an attribute of this module, for example bitlm_flows.stages:tokens.
globals().update(FLOWS)
