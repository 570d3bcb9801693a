"""The gated skip connection from the input of a network to its output."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Skip(nn.Module):
    """(1 - g) x + sqrt(g) F, where F is the output of the layers and the gate g in (0, 1) a sigmoid
    of a linear function of the embedding of time and conditions, 1/2 at first.

    A network that predicts the data returns nearly x at low noise, and layers alone reproduce x
    only to about their own error. For standardised data and x = x_0 + sigma eps, 1 - g and sqrt(g)
    are EDM's c_skip and c_out where g = sigma^2 / (1 + sigma^2) (Karras et al. 2022, arXiv
    2206.00364, table 1); here the gate is learned, so that no noise level need be known.

    Args:
        width: features of the embedding.
        used: whether the network has the connection; else F is returned.

    Raises:
        TypeError: unless used is a bool.
    """

    def __init__(self, width: int, used: bool) -> None:
        super().__init__()
        if not isinstance(used, bool):
            raise TypeError(f"skip is True or False, not {used!r:.60}")
        self.gate = nn.Linear(width, 1) if used else None
        self.config: dict[str, bool] = {"skip": True} if used else {}
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor, output: Tensor, embedding: Tensor) -> Tensor:
        """Returns a tensor of the shape of x."""
        if self.gate is None:
            return output
        logits = self.gate(embedding)
        # In half precision 1 - g would be rounded to 1 long before g is 0.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.reshape(-1, *[1 for _ in x.shape[1:]])
        share = torch.sigmoid(-logits)
        root = torch.exp(0.5 * functional.logsigmoid(logits))  # with a derivative where g is 0
        return (share * x + root * output).to(x.dtype)
