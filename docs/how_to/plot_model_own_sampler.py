"""
How do I write my own sampler?
==============================

Either write the loop yourself, with ``sd.stepper``, or write a class whose ``run`` solves a
``ReverseProblem``. The second is a method like all others, and can be given to ``sd.sample``. Look
for the distance of each sample from the converged one, which is solved from the same noise.
"""

from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import sdekit_diffusion as sd
import torch

model = sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.02, 0.05])  # or your own


@dataclass(frozen=True, eq=False)
class Switched(sd.AbstractMethod):
    """One method while the noise is large, another below a noise level."""

    high: sd.AbstractMethod
    low: sd.AbstractMethod
    log_snr: float = 0.0

    def run(self, problem):
        first = self.high.run(replace(problem, span=(problem.span[0], self.log_snr)))
        return self.low.run(replace(problem, u=first.x, span=(self.log_snr, problem.span[1])))


x_T = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
converged = sd.sample(model, x_T=x_T, sde="vp", method=sd.AdaptiveFlow(1e-6, 1e-6))
methods = {
    "Switched, 10 + 10 steps": Switched(sd.DDIM(steps=10), sd.OnClock(steps=10)),
    "DDIM, 20 steps": sd.DDIM(steps=20),
}
fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharex=True, sharey=True)
for ax, (name, method) in zip(axes, methods.items(), strict=True):
    x = sd.sample(model, x_T=x_T, sde="vp", method=method)
    print(f"{name:24} error {float((x - converged).square().mean().sqrt()):.3f}")
    ax.plot(*converged.T, ".", ms=4, color="0.7", label="converged")
    ax.plot(*x.T, ".", ms=2, label="method")
    ax.set(title=name, xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
axes[0].legend()

# %%
# **Your own loop.** ``next()`` makes a step, ``x`` is the state, ``denoised()`` the model's
# estimate of the data, and ``with_x`` replaces the state. Here no coordinate of the state may
# exceed 1.2 after a step:

at = sd.stepper(model, 300, sde="vp", method="ddim", steps=30, seed=0)
while at.remaining:
    at = at.next()
    at = at.with_x(at.x.clamp(max=1.2))
print("largest coordinate", float(at.samples.max()))

# %%
# **A grid of your own** is a list of decreasing noise levels :math:`\sigma / \alpha`, or a class
# with ``points``:

levels = torch.logspace(1.5, -2.5, 21)
x = sd.sample(model, 300, sde="vp", grid=levels, seed=0)
print("standard deviation", float(x.std()), "of the law", float(model.data_std))

# %%
# **A solver of sdekit is a method already**: ``method=sdekit.Heun()``, or
# ``sd.OnClock(sdekit.AdamsBashforth(2))`` on the clock of the log-SNR.
#
# **Pitfalls.** A multistep rule keeps values of earlier states, and still uses them after
# ``with_x``. Single-step methods, such as ``"ddim"``, keep none.
#
# Reference: :doc:`samplers </samplers>`, :doc:`contributing </contributing>`.
