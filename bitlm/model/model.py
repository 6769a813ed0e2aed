"""BitLM: a Qwen3 backbone over blocks of m tokens with the diffusion head or, as the baseline, a vocabulary softmax."""

import math
from dataclasses import dataclass
from os import PathLike

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Qwen3Model
from transformers import initialization as init
from transformers.utils import ModelOutput

from bitlm.codes import signs
from bitlm.config import DiffusionConfig
from bitlm.diffusion.loss import bit_loss
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.diffusion.process import corrupt
from bitlm.errors import ArtifactError, ConfigError
from bitlm.generation.loop import generate, stream_blocks
from bitlm.model.backbone import initialize_scaled, positions, training_mask
from bitlm.model.codebook import last_vector
from bitlm.model.config import BitLMConfig
from bitlm.model.head import DiffusionHead, Prepared

DEFAULT_DIFFUSION = DiffusionConfig()


@dataclass
class BitLMOutput(ModelOutput):
    """``loss`` = ``loss_sum`` / ``loss_count`` (0 without loss tokens). The sum runs over the tokens of the call that
    carry loss, each the mean over its noise draws, and the count is their number: summing both over micro-batches and
    ranks combines them exactly. ``slot_loss`` [b, N, draws, m] (draws = m = 1 for the LM head) is detached and 0
    for tokens without loss; ``in_loss`` [b, N, m] is True for the others."""

    loss: Tensor | None = None
    loss_sum: Tensor | None = None
    loss_count: Tensor | None = None
    slot_loss: Tensor | None = None
    in_loss: Tensor | None = None


class LanguageModelHead(nn.Module):
    """The vocabulary softmax; without its own matrix when the embedding serves as the output (tied)."""

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.output = None
        if not config.tie_word_embeddings:
            self.output = nn.Linear(config.hidden_size, config.embedding_rows, bias=False)

    def forward(self, context: Tensor, embedding: Tensor) -> Tensor:
        """[..., D] → logits [..., V] float32; rows that only pad the matrix take no part."""
        weight = embedding if self.output is None else self.output.weight
        return F.linear(context, weight[: self.vocab_size]).float()


class BitLMForCausalLM(PreTrainedModel):
    config_class = BitLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("Qwen3DecoderLayer",)

    def __init__(self, config: BitLMConfig) -> None:
        super().__init__(config)
        self.model = Qwen3Model(config.backbone())
        self.start_block = nn.Parameter(torch.empty(config.block_size, config.hidden_size))
        self.slot_embedding = None
        if config.slot_embedding:
            self.slot_embedding = nn.Parameter(torch.empty(config.block_size, config.hidden_size))
        self.head = DiffusionHead(config) if config.head == "diffusion" else LanguageModelHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def _init_weights(self, module: nn.Module) -> None:
        """Backbone and learned vectors: normal with ``initializer_range``, as Qwen3, or ``initialize_scaled``. Head: as
        BitDance (Xavier-uniform matrices, zero modulation and output). What the direct path and the codebook read from
        C starts from nothing, but for the codebook's query: the last vector before the block, which knows most."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if module is self:
            scaled = self.config.initialization == "scaled"
            init.normal_(self.start_block, std=self.config.hidden_size**-0.5 if scaled else std)
            if scaled:
                initialize_scaled(self.model)
            if self.slot_embedding is not None:
                init.zeros_(self.slot_embedding)
        elif isinstance(module, DiffusionHead):
            for linear in (part for part in module.modules() if isinstance(part, nn.Linear)):
                init.xavier_uniform_(linear.weight)
            for linear in (*module.modulations, module.final_modulation, module.output):
                init.zeros_(linear.weight)
            if module.prior is not None:
                init.zeros_(module.prior.weight)
            if module.codebook is not None:
                init.copy_(module.codebook.query.weight, last_vector(*module.null_context.shape))
                init.constant_(module.codebook.log_unigram, -math.log(self.config.vocab_size))
                if module.codebook.coupling is not None:
                    init.zeros_(module.codebook.coupling.weight)
            for vectors in (module.null_context, module.slot_embedding, module.time[0].weight, module.time[2].weight):
                init.normal_(vectors, std=std)

    @classmethod
    def from_pretrained(cls, source: str | PathLike, *args, output_loading_info: bool = False, **kwargs):
        """Transformers' own, but only a complete and exact set of tensors is accepted; what does not fit would be drawn
        at random.

        Raises ArtifactError naming the source and the first tensor that is missing, unknown or of another shape.
        """
        kwargs["ignore_mismatched_sizes"] = True  # told below, by name
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        for name in sorted(info["missing_keys"]):
            raise ArtifactError(f"{source}: tensor {name} is missing; the checkpoint is incomplete or of another model")
        for name in sorted(info["unexpected_keys"]):
            raise ArtifactError(f"{source}: tensor {name} has no place in the model that config.json describes")
        for name, stored, expected in sorted(info["mismatched_keys"]):
            raise ArtifactError(f"{source}: tensor {name} has shape {tuple(stored)}, the model needs {tuple(expected)}")
        return (model, info) if output_loading_info else model

    @classmethod
    def load(cls, folder: str | PathLike, **kwargs) -> "BitLMForCausalLM":
        """``from_pretrained`` of a local folder. Raises ArtifactError also where nothing there can be read."""
        try:
            return cls.from_pretrained(folder, local_files_only=True, **kwargs)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{folder}: no readable model there ({str(error).splitlines()[0]})") from error

    def set_unigram(self, counts: Tensor) -> None:
        """Tell the codebook how often each of the V tokens occurs, counts [V]. To be done before training.

        Raises ConfigError for a head without a codebook, or counts of another vocabulary.
        """
        if not self.config.has_codebook:
            raise ConfigError("this model's head has no codebook, so it has no use for unigram counts")
        self.head.codebook.set_unigram(counts)

    def embed(self, input_ids: Tensor) -> Tensor:
        """ids [b, L] → what the backbone is fed, [b, L, D]; L is a whole number of blocks."""
        embedded = self.model.embed_tokens(input_ids)
        if self.slot_embedding is None:
            return embedded
        return embedded + self.slot_embedding.repeat(input_ids.shape[1] // self.config.block_size, 1)

    def prepare(self, context: Tensor) -> Prepared:
        """C [n, m, D] → what the diffusion head computes of it once, to train on."""
        return self.head.prepare(context, self.model.embed_tokens.weight)

    def context(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """ids [b, L] → C [b, N, m, D]: entry n is all that the head may know when it realizes block n.

        The start block and all blocks but the last are fed. ``attention_mask`` [b, L] is 0 on left padding.
        Raises ConfigError if m does not divide L.
        """
        b, L = input_ids.shape
        m = self.config.block_size
        if L == 0 or L % m:
            raise ConfigError(f"a sequence of {L} tokens is not a whole number of blocks of {m}")
        embedded = self.embed(input_ids[:, : L - m])
        fed = torch.cat([self.start_block.expand(b, -1, -1), embedded], dim=1)  # [b, L, D]
        visible = position_ids = None
        if attention_mask is not None:
            visible = F.pad(attention_mask[:, : L - m].bool(), (m, 0), value=True)
            position_ids = positions(visible, m)
        hidden = self.model(
            inputs_embeds=fed,
            attention_mask={"full_attention": training_mask(L, m, visible, fed.device)},
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden.view(b, L // m, m, -1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        loss_tokens: Tensor | None = None,
        diffusion: DiffusionConfig = DEFAULT_DIFFUSION,
    ) -> BitLMOutput:
        """The training loss of ids [b, L] in one teacher-forced pass; the targets are the ids themselves.

        A token carries loss if its block has no padding, its label in ``labels`` [b, L] is not -100 (other values are
        not read) and ``loss_tokens`` [b, L] is True there. ``diffusion`` names the diffusion head's loss. Without
        ``noise`` the diffusion head draws some by these settings, keyed by torch's global random state. The LM head
        uses neither. Raises ConfigError for a loss that the head cannot compute.
        """
        in_loss = self._in_loss(input_ids, attention_mask, labels, loss_tokens)  # [b, N, m] or None = all
        chosen = None if in_loss is None else in_loss.any(-1)  # [b, N]: blocks with at least one such token
        context = self.context(input_ids, attention_mask)
        b, N, m, _ = context.shape
        targets = input_ids.view(b, N, m)
        if chosen is not None:
            context, targets = context[chosen], targets[chosen]
        else:
            context, targets = context.flatten(0, 1), targets.flatten(0, 1)  # [n, m, D], [n, m]
        if self.config.head == "lm":
            losses = self.token_nll(context, targets)[:, None]  # [n, draws = 1, m = 1]
        else:
            noise = (noise or self._fresh_noise(b, N, diffusion)).to(context.device)
            noise = Noise(*(x.flatten(0, 1) if chosen is None else x[chosen] for x in (noise.eps, noise.t, noise.drop)))
            losses = self._slot_losses(context, targets, noise, diffusion)  # [n, draws, m]
        return _collect(losses, in_loss, (b, N))

    def token_nll(self, context: Tensor, targets: Tensor) -> Tensor:
        """LM head: C [..., D] and ids [...] → exact -log p, nats [...]."""
        logits = self.head(context, self.model.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)

    def _slot_losses(self, context: Tensor, targets: Tensor, noise: Noise, diffusion: DiffusionConfig) -> Tensor:
        """C [n, m, D], ids [n, m], noise of the same n blocks → loss per block, draw and slot [n, draws, m]."""
        draws = noise.t.shape[1]
        clean = signs(targets, self.config.num_bits)[:, None]  # [n, 1, m, B]
        noisy = corrupt(clean, noise.eps, noise.t[..., None])  # [n, draws, m, B]
        context = torch.where(noise.drop[:, None, None], self.head.null_context.to(context.dtype), context)
        prepared = self.prepare(context).repeat(draws)
        inputs = noisy.flatten(0, 1), noise.t.flatten(0, 1), prepared
        if diffusion.loss == "token":
            targets = targets.repeat_interleave(draws, dim=0)
            return self.head.token_nll(*inputs, targets).view(noisy.shape[:-1])
        logits = self.head(*inputs).view(noisy.shape)
        return bit_loss(logits, clean, noise.t[..., None], diffusion)

    def _in_loss(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor | None, loss_tokens: Tensor | None
    ) -> Tensor | None:
        blocks = (len(input_ids), -1, self.config.block_size)
        conditions = [] if loss_tokens is None else [loss_tokens.bool().view(blocks)]
        if attention_mask is not None:
            real = attention_mask.bool().view(blocks)
            conditions.append(real.all(-1, keepdim=True).expand_as(real))
        if labels is not None:
            conditions.append((labels != -100).view(blocks))
        return torch.stack(conditions).all(0) if conditions else None

    def _fresh_noise(self, b: int, N: int, diffusion: DiffusionConfig) -> Noise:
        keys = NoiseKeys(int(torch.randint(2**62, ())), range(b), [0] * b)
        return block_noise(keys, BlockShape(N, self.config.block_size, self.config.num_bits), diffusion)

    # Functions of the model; their options are the fields of ``bitlm.model.Sampling``.
    generate = generate
    stream = stream_blocks


def _collect(losses: Tensor, in_loss: Tensor | None, shape: tuple[int, int]) -> BitLMOutput:
    """Losses [n, draws, m] of the n blocks with a token in the loss, of all (b, N) for ``in_loss`` = None → sums over
    the tokens in the loss, and the full grid."""
    if in_loss is None:
        in_loss = torch.ones(*shape, losses.shape[-1], dtype=torch.bool, device=losses.device)
    chosen = in_loss.any(-1)
    losses = torch.where(in_loss[chosen][:, None], losses, 0)
    grid = losses.new_zeros(*shape, *losses.shape[1:])
    grid[chosen] = losses.detach()
    total, count = losses.mean(dim=1).sum(), in_loss.sum()
    loss = total / count.clamp(min=1)
    return BitLMOutput(loss=loss, loss_sum=total, loss_count=count, slot_loss=grid, in_loss=in_loss)


AutoConfig.register("bitlm", BitLMConfig)
AutoModelForCausalLM.register(BitLMConfig, BitLMForCausalLM)
