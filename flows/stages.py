"""Each stage as a flow of its own. Its inputs are found through the configuration, or named by id in ``inputs``."""

from prefect import Flow, flow

from bitlm.config import PipelineConfig
from flows.execute import Inputs, Stage, Summaries, execute
from tasks.run import Verification

TINY = PipelineConfig()


def _flow(stage: Stage, purpose: str) -> Flow:
    """The flow of one stage; all have the same parameters, which a Prefect deployment shows as a form."""

    def run(
        config: PipelineConfig = TINY,
        root: str = "artifacts",
        inputs: Inputs = None,
        upstream: bool = False,
        verification: Verification = "full",
    ) -> Summaries:
        return execute([stage], config, root, inputs, upstream, verification)

    run.__name__ = run.__qualname__ = stage
    return flow(name=stage, description=purpose)(run)


corpus = _flow("corpus", "Text to pretrain on, and the summarization set.")
tokenizer = _flow("tokenizer", "A trained or a ready tokenizer, and the number of bits of its codes.")
tokens = _flow("tokens", "The corpus as shards of binary codes.")
pretrain = _flow("pretrain", "A model for each head of `config.pretrain.heads`.")
finetune = _flow("finetune", "The pretrained models, taught to summarize.")
evaluate = _flow("evaluate", "Summaries and their ROUGE for the lead baseline and for every model.")
report = _flow("report", "One page that shows it all.")

FLOWS = {made.name: made for made in (corpus, tokenizer, tokens, pretrain, finetune, evaluate, report)}
