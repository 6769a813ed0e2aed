"""Which training losses go with which model, in the pipeline's configuration as for a model that is called."""

from typing import NamedTuple

from bitlm.config.stages import DiffusionConfig, HeadConfig, Mask


class Place(NamedTuple):
    """What stands before the keys of the losses, of the model and of its head in messages."""

    loss: str = ""
    model: str = ""
    head: str = "diffusion_head."


def check(diffusion: DiffusionConfig, head: HeadConfig, mask: Mask, block_size: int, place: Place) -> None:
    """Raises ValueError, naming keys and remedy, for losses that a diffusion head on this backbone cannot compute."""
    loss, model, of_head = place
    for name in ("chain_slots", "block_offsets"):
        if (value := getattr(diffusion, name)) > block_size:
            raise ValueError(f"{loss}{name} = {value} is more than {model}block_size = {block_size}")
    if diffusion.chain_slots and head.attention != "causal":
        raise ValueError(
            f"{loss}chain_slots = {diffusion.chain_slots} needs {of_head}attention = causal, so that one pass serves "
            "all prefixes"
        )
    if diffusion.block_offsets > 1 and (mask != "causal" or diffusion.chain_slots == 0):
        raise ValueError(
            f"{loss}block_offsets = {diffusion.block_offsets} needs {model}mask = causal and {loss}chain_slots of 1 or "
            "more"
        )
    if diffusion.chain_slots == 0 and diffusion.noise_share < 1:
        raise ValueError(
            f"{loss}noise_share = {diffusion.noise_share:g} needs {loss}chain_slots of 1 or more: the other blocks "
            "would learn nothing"
        )
    if diffusion.next_token_weight and (mask, head.denoiser) != ("causal", "codebook"):
        raise ValueError(
            f"{loss}next_token_weight = {diffusion.next_token_weight} needs {model}mask = causal and "
            f"{of_head}denoiser = codebook"
        )
