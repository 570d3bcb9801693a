"""Score networks that depend on torch only: modules called as `net(x, t)` with x, `(B, *shape)`,
and t, `(B,)`, that return a tensor of the shape of x.

Networks that were built with a number of classes, the length of a context or the channels of an
image also receive these conditions of each sample, `net(x, t, label=..., context=..., image=...)`.
Their `null` holds, by condition, the value that stands for an unknown one.

`config` holds the constructor arguments of a network as JSON, so that
`registry[name](**net.config)` builds the same network.

Example:
    >>> net = sd.nets.MLP(shape=(2,), width=16)
    >>> same = sd.nets.registry["MLP"](**net.config)
    >>> same(torch.zeros(4, 2), torch.full((4,), 0.5)).shape
    torch.Size([4, 2])
"""

from torch import nn

from sdekit_diffusion.nets._dit import DiT
from sdekit_diffusion.nets._mlp import MLP
from sdekit_diffusion.nets._refinenet import NCSN, NCSNv2
from sdekit_diffusion.nets._unet import UNet

registry: dict[str, type[nn.Module]] = {
    "MLP": MLP,
    "NCSN": NCSN,
    "NCSNv2": NCSNv2,
    "UNet": UNet,
    "DiT": DiT,
}

__all__ = ["MLP", "NCSN", "DiT", "NCSNv2", "UNet", "registry"]
