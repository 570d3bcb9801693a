r"""
A Langevin equation: escapes from a well
========================================

.. index:: ! double well

The overdamped Langevin equation :math:`\mathrm{d}x = -U'(x)\,\mathrm{d}t + s\,\mathrm{d}W` of a
particle in the potential :math:`U(x) = (x^2 - 1)^2 / 4`: the particle stays in a well for long
times. The time of its first passage of 0 is an event; its mean grows as :math:`e^{2 V / s^2}` with
the height :math:`V = 1/4` of the barrier (Kramers). Look for the few changes of the well on the
left, each much shorter than the time between two, and on the right for dots near Kramers' line
while the time grows about eightfold.
"""

import math

import matplotlib.pyplot as plt
import sdekit
import torch


def well(s):
    return sdekit.SDE(lambda t, x: x - x**3, lambda t, x: s, "additive")


path = sdekit.solve(
    well(0.5), torch.full((1, 1), -1.0), sdekit.uniform(0.0, 150.0, 6000), solver=sdekit.Heun(),
    noise=sdekit.WhiteNoise(3), save="all",
)  # fmt: skip
over = sdekit.Event(lambda t, x: x[:, 0])
levels = [0.4, 0.45, 0.5, 0.6, 0.7]
means = []
for s in levels:
    end = 60.0 * math.exp(0.5 / s**2)
    solution = sdekit.solve(
        well(s), torch.full((400, 1), -1.0), sdekit.uniform(0.0, end, int(end / 0.1)),
        solver=sdekit.Heun(), noise=sdekit.WhiteNoise(0), event=over,
    )  # fmt: skip
    means.append(float(solution.events.t[0].nanmean()))

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=[2, 1])
axes[0].plot(path.ts, path.xs[:, 0, 0], lw=0.5)
axes[0].set(xlabel="time", ylabel="x", title="noise 0.5")
axes[1].semilogy([1 / s**2 for s in levels], means, "o", label="mean of 400 passages")
kramers = [math.pi / math.sqrt(2) * math.exp(0.5 / s**2) for s in levels]
axes[1].semilogy([1 / s**2 for s in levels], kramers, "k-", lw=0.8, label="Kramers")
axes[1].set(xlabel="$1 / s^2$", ylabel="time to 0")
axes[1].legend()
