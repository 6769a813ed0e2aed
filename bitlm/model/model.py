"""BitLM: a Qwen3 backbone over blocks of m tokens with the diffusion head or, as the baseline, a vocabulary softmax."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, Qwen3Model
from transformers import initialization as init
from transformers.utils import ModelOutput

from bitlm.config import DiffusionConfig
from bitlm.diffusion.noise import BlockShape, Noise, NoiseKeys, block_noise
from bitlm.errors import ConfigError
from bitlm.generation.mixin import GenerationMixin
from bitlm.model.backbone import additive_mask, positions
from bitlm.model.backbone import attention_mask as build_mask
from bitlm.model.code_input import CodeInput
from bitlm.model.config import BitLMConfig
from bitlm.model.head import DiffusionHead, LanguageModelHead
from bitlm.model.initialize import initialize_codes, initialize_head, initialize_scaled
from bitlm.model.inputs import check_arguments, check_ids, check_labels, check_like_ids, check_losses, visible_tokens
from bitlm.model.interface import BitLMPreTrainedModel, check_attention
from bitlm.model.losses import Sequences, next_token_losses, shifted_losses, slot_losses
from bitlm.model.state import HeadConstants

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


class BitLMForCausalLM(GenerationMixin, BitLMPreTrainedModel):
    def __init__(self, config: BitLMConfig, **unknown: Any) -> None:
        super().__init__(config, **unknown)
        self.model = Qwen3Model(config.backbone())
        if not config.has_embedding:
            self.model.embed_tokens = None
        self.code_input = CodeInput(config.num_bits, config.hidden_size) if config.input == "codes" else None
        self.start_block = nn.Parameter(torch.empty(config.block_size, config.hidden_size))
        self.slot_embedding = None
        if config.slot_embedding:
            self.slot_embedding = nn.Parameter(torch.empty(config.block_size, config.hidden_size))
        self.head = DiffusionHead(config) if config.head == "diffusion" else LanguageModelHead(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Backbone and learned vectors: normal with ``initializer_range``, as Qwen3, or ``initialize_scaled``."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if module is self:
            scaled = self.config.initialization == "scaled"
            fed_std = self.config.hidden_size**-0.5 if scaled else std
            init.normal_(self.start_block, std=fed_std)
            if scaled:
                initialize_scaled(self.model)
            if self.code_input is not None:
                initialize_codes(self.code_input, fed_std)
            if self.slot_embedding is not None:
                init.zeros_(self.slot_embedding)
        elif isinstance(module, DiffusionHead):
            initialize_head(module, std)

    def set_unigram(self, counts: Tensor) -> None:
        """Set the codebook's unigram frequencies from the counts of the V tokens [V], before training.

        Raises ConfigError for a head without a codebook, or counts of another vocabulary.
        """
        if not self.config.has_codebook:
            raise ConfigError("this model's head has no codebook, so it has no use for unigram counts")
        self.head.readout.codebook.set_unigram(counts)

    def embed(self, input_ids: Tensor, flips: Tensor | None = None) -> Tensor:
        """ids [b, L] → what the backbone is fed, [b, L, D]; L is a whole number of blocks.

        ``flips`` [b, L, B] is True where a bit of the input codes has the other sign. Raises ConfigError for a model
        that is not fed with codes.
        """
        if self.code_input is not None:
            embedded = self.code_input(input_ids, flips)
        elif flips is None:
            embedded = self.model.embed_tokens(input_ids)
        else:
            raise ConfigError("diffusion.flip_share flips bits of input codes: it needs a model with input = codes")
        if self.slot_embedding is None:
            return embedded
        return embedded + self.slot_embedding.repeat(input_ids.shape[1] // self.config.block_size, 1)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of backbone and head, in order: what is sharded one by one."""
        head = self.head.network.layers if isinstance(self.head, DiffusionHead) else ()
        return [*self.model.layers, *head]

    @property
    def embedding(self) -> Tensor | None:
        """The embedding matrix [rows, D]; None where neither input nor output needs one."""
        return self.model.embed_tokens.weight if self.config.has_embedding else None

    def head_constants(self) -> HeadConstants:
        """What the diffusion head computes once, whatever the context."""
        return self.head.constants(self.embedding)

    def sampling_constants(self, t_K1m: Tensor, guided: bool) -> HeadConstants:
        """The same for a sampler whose K steps have the noise levels ``t``."""
        return self.head.sampling_constants(self.embedding, t_K1m, guided)

    def walk_constants(self, guided: bool) -> HeadConstants:
        """The same for realizing the slots one after the other, where the head keeps clean slots."""
        return self.head.walk_constants(self.embedding, guided)

    def token_logits(self, context: Tensor) -> Tensor:
        """LM head: C [..., D] → [..., V] float32."""
        return self.head(context, self.embedding)

    def compute_context(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """ids [b, L] → C [b, N, m, D]: entry n is all that the head may know when it realizes block n.

        The start block and all blocks but the last are fed. ``attention_mask`` [b, L] is 0 on padding, on the left or
        on the right of a row. The first block with a token is told what the start block tells, as without padding.
        Raises ConfigError if m does not divide L, or for ids and masks of another form.
        """
        self.check_unchanged()
        check_ids(self.config, input_ids)
        visible = None if attention_mask is None else visible_tokens(attention_mask, input_ids)
        return self._contexts(input_ids.long(), visible)

    def _contexts(self, input_ids: Tensor, visible_bL: Tensor | None, flips_bLB: Tensor | None = None) -> Tensor:
        """``compute_context`` of ids and a mask that have been checked."""
        L, m = input_ids.shape[1], self.config.block_size
        visible_bS = None if visible_bL is None else F.pad(visible_bL[:, : L - m], (m, 0), value=True)
        flips_bqB = None if flips_bLB is None else flips_bLB[:, : L - m]
        fed_bSD = self._with_start(input_ids[:, : L - m], visible_bS, flips_bqB)
        context_bNmD = self._hidden_states(fed_bSD, visible_bS).unflatten(1, (L // m, m))
        if visible_bS is None:
            return context_bNmD
        # Behind a causal mask the places of a block of padding see all of the start block, those of the latter do not.
        told_bN = visible_bS.unflatten(1, (L // m, m)).any(-1)
        return torch.where(told_bN[..., None, None], context_bNmD, context_bNmD[:, :1])

    def next_context(self, input_ids: Tensor, visible: Tensor | None, cache: Cache) -> Tensor:
        """Feed ids [r, q] and return C [r, m, D] of the block that follows them.

        An empty ``cache`` is filled from the start block and whole prompts; afterwards ids are one block, and the cache
        holds all before it. ``visible`` [r, m + tokens so far] is False on padding; None where there is none.
        Raises ConfigError while the layers are checkpointed in training, when Transformers takes the cache away.
        """
        self.check_unchanged()
        if self.training and self.is_activation_checkpointing:
            raise ConfigError("gradient checkpointing keeps no cache while a model trains: call model.eval() first")
        fed = self.embed(input_ids) if cache.get_seq_length() else self._with_start(input_ids, visible)
        return self._hidden_states(fed, visible, cache)[:, -self.config.block_size :]

    def _with_start(self, input_ids: Tensor, visible_bS: Tensor | None, flips_bqB: Tensor | None = None) -> Tensor:
        """The start block and then the embedded ids [b, q]: [b, S = m + q, D].

        Padding is fed with the start block's vectors: the ids under it do not matter, and the whole block of padding
        before a row's first block becomes what the start block is.
        """
        embedded_bqD = self.embed(input_ids, flips_bqB)
        fed_bSD = torch.cat([self.start_block.expand(len(input_ids), -1, -1), embedded_bqD], dim=1)
        if visible_bS is None:
            return fed_bSD
        start_SD = self.start_block.repeat(fed_bSD.shape[1] // self.config.block_size, 1)
        return torch.where(visible_bS[..., None], fed_bSD, start_SD)

    def _hidden_states(self, fed_bqD: Tensor, visible_bS: Tensor | None, cache: Cache | None = None) -> Tensor:
        """The backbone's final hidden states [b, q, D] of the last q places of S; the cache holds those before."""
        past = 0 if cache is None else cache.get_seq_length()
        q, m = fed_bqD.shape[1], self.config.block_size
        if visible_bS is None:
            position_ids = torch.arange(past, past + q, device=fed_bqD.device)[None]
        else:
            position_ids = positions(visible_bS, m)[:, past:]
        check_attention(self.model.config._attn_implementation)
        span = m if self.config.mask == "block" else 1
        eager = self.model.config._attn_implementation == "eager"  # adds the mask to the scores
        mask = build_mask(q, past, span, visible_bS, fed_bqD.device, always=eager)
        if eager and mask is not None:
            mask = additive_mask(mask, fed_bqD.dtype)
        return self.model(
            inputs_embeds=fed_bqD,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            is_causal=mask is None and past == 0,
        ).last_hidden_state

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        noise: Noise | None = None,
        loss_tokens: Tensor | None = None,
        diffusion: DiffusionConfig = DEFAULT_DIFFUSION,
        **unsupported: Any,
    ) -> BitLMOutput:
        """The training loss of ids [b, L] in one teacher-forced pass; the targets are the ids themselves.

        A token carries loss if its block has no padding, its label in ``labels`` [b, L] is not -100 (else it is the
        id itself) and ``loss_tokens`` [b, L] is True there. ``diffusion`` names the diffusion head's loss. Without
        ``noise`` the diffusion head draws some by these settings, keyed by torch's global random state. The LM head
        uses neither. Raises ConfigError for a loss that the head cannot compute, tensors of another form, labels that
        differ from the ids, and arguments of other models that ask for something.
        """
        self.check_unchanged()
        check_arguments(unsupported)
        check_ids(self.config, input_ids)
        input_ids = input_ids.long()
        visible_bL = None if attention_mask is None else visible_tokens(attention_mask, input_ids)
        in_loss_bNm = self._in_loss(input_ids, visible_bL, labels, loss_tokens)  # None: all tokens
        chosen_bN = None if in_loss_bNm is None else in_loss_bNm.any(-1)  # blocks with at least one such token

        def of_chosen_blocks(tensor: Tensor) -> Tensor:
            """[b, N, ...] → [n, ...]"""
            return tensor.flatten(0, 1) if chosen_bN is None else tensor[chosen_bN]

        b, N, m = len(input_ids), input_ids.shape[1] // self.config.block_size, self.config.block_size
        ids_bNm = input_ids.view(b, N, m)
        if self.config.head == "lm":
            context_nmD = of_chosen_blocks(self._contexts(input_ids, visible_bL))
            losses_ndm = self.token_nll(context_nmD, of_chosen_blocks(ids_bNm))[:, None]  # one draw, m = 1
            return _collect(losses_ndm, in_loss_bNm, (b, N))
        check_losses(self.config, diffusion)
        noise = (noise or self._fresh_noise(b, N, diffusion)).to(input_ids.device)
        context_bNmD = self._contexts(input_ids, visible_bL, noise.flips)
        blocks = of_chosen_blocks(context_bNmD), of_chosen_blocks(ids_bNm), noise.map(of_chosen_blocks)
        losses_ndm = slot_losses(self.head, self.embedding, *blocks, diffusion)
        output = _collect(losses_ndm, in_loss_bNm, (b, N))
        visible_bNm = None if visible_bL is None else visible_bL.view(b, N, m)
        sequences = Sequences(context_bNmD, ids_bNm, output.in_loss, visible_bNm)
        self._add_further_losses(output, sequences, noise.offsets, diffusion)
        return output

    def token_nll(self, context: Tensor, targets: Tensor) -> Tensor:
        """LM head: C [..., D] and ids [...] → exact -log p, nats [...]."""
        logits = self.token_logits(context)
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)

    def _add_further_losses(
        self, output: BitLMOutput, sequences: Sequences, offsets_be: Tensor, diffusion: DiffusionConfig
    ) -> None:
        """Of blocks that generation does not begin, and of single tokens: both need the causal mask."""
        if offsets_be.shape[1]:
            of_blocks = shifted_losses(self.head, self.embedding, sequences, offsets_be, diffusion)
            output.loss_sum = output.loss_sum + of_blocks
        if diffusion.next_token_weight:
            of_tokens = next_token_losses(self.head, self.embedding, sequences)
            output.loss_sum = output.loss_sum + diffusion.next_token_weight * of_tokens
        output.loss = output.loss_sum / output.loss_count.clamp(min=1)

    def _in_loss(
        self, input_ids: Tensor, visible_bL: Tensor | None, labels: Tensor | None, loss_tokens: Tensor | None
    ) -> Tensor | None:
        blocks = (len(input_ids), -1, self.config.block_size)
        conditions = []
        if loss_tokens is not None:
            check_like_ids("loss_tokens", loss_tokens, input_ids)
            conditions.append(loss_tokens.bool().view(blocks))
        if visible_bL is not None:
            real = visible_bL.view(blocks)
            conditions.append(real.all(-1, keepdim=True).expand_as(real))
        if labels is not None:
            check_labels(labels, input_ids)
            conditions.append((labels != -100).view(blocks))
        return torch.stack(conditions).all(0) if conditions else None

    def _fresh_noise(self, b: int, N: int, diffusion: DiffusionConfig) -> Noise:
        keys = NoiseKeys(int(torch.randint(2**62, ())), range(b), [0] * b)
        return block_noise(keys, BlockShape(N, self.config.block_size, self.config.num_bits), diffusion)


def _collect(losses_ndm: Tensor, in_loss_bNm: Tensor | None, shape: tuple[int, int]) -> BitLMOutput:
    """Losses of the n blocks with a token in the loss, over d draws (of all b·N blocks for ``in_loss`` = None) → sums
    over the tokens in the loss, and the full grid."""
    grid_bNdm = losses_ndm.new_zeros(*shape, *losses_ndm.shape[1:])
    if in_loss_bNm is None:
        in_loss_bNm = torch.ones(*shape, losses_ndm.shape[-1], dtype=torch.bool, device=losses_ndm.device)
        grid_bNdm = losses_ndm.detach().view(grid_bNdm.shape)
    else:
        chosen_bN = in_loss_bNm.any(-1)
        losses_ndm = torch.where(in_loss_bNm[chosen_bN][:, None], losses_ndm, 0)
        grid_bNdm[chosen_bN] = losses_ndm.detach()
    total, count = losses_ndm.mean(dim=1).sum(), in_loss_bNm.sum()
    loss = total / count.clamp(min=1)
    return BitLMOutput(loss=loss, loss_sum=total, loss_count=count, slot_loss=grid_bNdm, in_loss=in_loss_bNm)


AutoConfig.register("bitlm", BitLMConfig)
for auto_class in (AutoModel, AutoModelForCausalLM):
    auto_class.register(BitLMConfig, BitLMForCausalLM)
