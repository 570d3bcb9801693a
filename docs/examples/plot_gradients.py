"""
Gradients through a solve
=========================

Three ways to the same gradient: autograd records every step, `Checkpointed` records some states and
repeats the steps between them, and `Reversible` runs the solver backwards. The picture shows the
differences of the last two from the first, relative to the gradient, and 0 as 1e-17. Look for
differences of the size of rounding errors.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
sde = sdekit.SDE(
    lambda t, x: net(x) - x, lambda t, x: 0.3 + 0.1 * torch.cos(x), "diagonal", "stratonovich"
)
x0 = torch.randn(64, 2, dtype=torch.float64)


def gradient(steps, how):
    solution = sdekit.solve(
        sde, x0, sdekit.uniform(0.0, 1.0, steps), solver=sdekit.ReversibleHeun(),
        noise=sdekit.WhiteNoise(0), gradient=how,
    )  # fmt: skip
    gradients = torch.autograd.grad(solution.x.square().mean(), list(net.parameters()))
    return torch.cat([part.flatten() for part in gradients])


counts = [10, 30, 100, 300]
fig, ax = plt.subplots(figsize=(5.5, 3.5))
for how in (sdekit.Checkpointed(), sdekit.Reversible()):
    errors = []
    for n in counts:
        plain = gradient(n, None)
        errors.append(float((gradient(n, how) - plain).norm() / plain.norm()))
    ax.loglog(counts, [max(e, 1e-17) for e in errors], "o-", label=type(how).__name__)
ax.set(xlabel="steps", ylabel="relative difference", ylim=(1e-17, 1e-12))
ax.legend()
