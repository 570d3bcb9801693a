r"""
How do I backpropagate through a long solve in little memory?
=============================================================

Autograd keeps the tensors of every step of a solve. ``gradient=Checkpointed()`` keeps every
:math:`\sqrt n`-th state of n steps and repeats the steps between them in the backward pass, with
the memory of about :math:`2 \sqrt n` steps. ``gradient=Reversible()`` keeps only the end and runs
the solver ``ReversibleHeun`` backwards. The gradients are the same up to rounding. The picture
shows the peak memory of the forward and the backward pass. Look for how it grows with the number of
steps: most with plain autograd, and hardly with ``Reversible``.
"""

import matplotlib.pyplot as plt
import sdekit
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)).double()
sde = sdekit.SDE(
    lambda t, x: net(x) - x, lambda t, x: 0.3 + 0.1 * torch.cos(x), "diagonal", "stratonovich"
)
x0 = torch.randn(64, 2, dtype=torch.float64)
settings = {"solver": sdekit.ReversibleHeun(), "noise": sdekit.WhiteNoise(0)}


def loss(steps, gradient):
    grid = sdekit.uniform(0.0, 1.0, steps)
    return sdekit.solve(sde, x0, grid, **settings, gradient=gradient).x.square().mean()


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that exist at the same time."""

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.peak = 0
        self.sizes = {}  # of storages

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                self.sizes[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.operations += 1
        if self.operations % 20 == 0:
            self.sizes = {k: v for k, v in self.sizes.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.sizes.values()))
        return result


def megabytes(steps, gradient):
    with PeakMemory() as memory:
        loss(steps, gradient).backward()
    return memory.peak / 1e6


ways = {"autograd": None, "Checkpointed": sdekit.Checkpointed(), "Reversible": sdekit.Reversible()}
counts = [16, 36, 100]
fig, ax = plt.subplots(figsize=(5.5, 3.3))
for name, gradient in ways.items():
    sizes = [megabytes(n, gradient) for n in counts]
    ax.loglog(counts, sizes, "o-", label=name)
    print(f"{name:12s}", ", ".join(f"{size:.2f} MB" for size in sizes))
ax.set(xlabel="steps", ylabel="peak memory in megabytes", xticks=counts,
       xticklabels=counts, yticks=[0.1, 1, 10], ylim=(0.1, 10))  # fmt: skip
ax.minorticks_off()
ax.legend(loc="center right")

# %%
# The same numbers
# ----------------
# All three differentiate the steps that were made, not the exact solution.

plain, *others = [torch.autograd.grad(loss(36, how), net[0].weight)[0] for how in ways.values()]
for name, other in zip(list(ways)[1:], others, strict=True):
    print(f"{name}: {float((other - plain).norm() / plain.norm()):.1e} from autograd")

# %%
# Which one
# ---------
# - ``Checkpointed()`` supports all solvers but ``Rodas4``, ``Rodas5P``, ``ImplicitEulerMaruyama``
#   and ``ImplicitPlaten``, gives second derivatives too, and evaluates each step twice. Within the
#   backward pass it holds the tensors of about :math:`\sqrt n` steps once more.
# - ``Reversible()`` costs three evaluations per step. Rounding errors grow where the drift
#   contracts for a long time; if the solve does not return to ``x0``, an error is raised.
# - :func:`sdekit.sdeint_adjoint` and :func:`sdekit.odeint_adjoint` solve the adjoint equation, as
#   in torchsde and torchdiffeq: constant memory, and a gradient with an error of the order of the
#   steps. ``sdeint_adjoint`` with ``method="reversible_heun"`` keeps the states of all steps and
#   has the gradient of the steps, as ``Reversible()``.
# - Adaptive steps, states between the steps (``save="dense"`` or times) and ``event=`` need
#   autograd (``gradient=None``).
#
# With large networks the memory is that of the network's activations; with small states the nodes
# of autograd's graph, which the picture does not count, are most of it
# (:doc:`/gradients`). Reference: :class:`sdekit.Checkpointed`, :class:`sdekit.Reversible`.
