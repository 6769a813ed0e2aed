"""Each stage as a flow of its own. Its inputs are found through the configuration, or named by id in ``inputs``."""

from prefect import flow

from bitlm.config import PipelineConfig
from flows.execute import Inputs, Summaries, execute
from tasks.run import Verification

TINY = PipelineConfig()


@flow(name="corpus")
def corpus(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """Text to pretrain on, and the summarization set."""
    return execute(["corpus"], config, root, inputs, upstream, verification)


@flow(name="tokenizer")
def tokenizer(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """A trained or a ready tokenizer, and the number of bits of its codes."""
    return execute(["tokenizer"], config, root, inputs, upstream, verification)


@flow(name="tokens")
def tokens(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """The corpus as shards of binary codes."""
    return execute(["tokens"], config, root, inputs, upstream, verification)


@flow(name="pretrain")
def pretrain(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """A model for each head of ``config.pretrain.heads``."""
    return execute(["pretrain"], config, root, inputs, upstream, verification)


@flow(name="finetune")
def finetune(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """The pretrained models, taught to summarize."""
    return execute(["finetune"], config, root, inputs, upstream, verification)


@flow(name="evaluate")
def evaluate(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """Summaries and their ROUGE for the lead baseline and for every model."""
    return execute(["evaluate"], config, root, inputs, upstream, verification)


@flow(name="report")
def report(
    config: PipelineConfig = TINY,
    root: str = "artifacts",
    inputs: Inputs = None,
    upstream: bool = False,
    verification: Verification = "full",
) -> Summaries:
    """One page that shows it all."""
    return execute(["report"], config, root, inputs, upstream, verification)


FLOWS = {f.name: f for f in (corpus, tokenizer, tokens, pretrain, finetune, evaluate, report)}
