"""The ±1 codes of tokens as the backbone's input, in place of rows of an embedding table."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlm.codes import encode


class CodeInput(nn.Module):
    """φ(y) → what the backbone is fed: a linear map, SiLU, a linear map."""

    def __init__(self, num_bits: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_bits, width)
        self.output = nn.Linear(width, width)

    def forward(self, ids: Tensor, flips: Tensor | None = None) -> Tensor:
        """ids [...] → [..., D]; where ``flips`` [..., B] is True, the bit has the other sign."""
        codes = encode(ids, self.hidden.in_features, check=False)
        if flips is not None:
            codes = torch.where(flips, -codes, codes)
        return self.output(F.silu(self.hidden(codes.to(self.hidden.weight.dtype))))
