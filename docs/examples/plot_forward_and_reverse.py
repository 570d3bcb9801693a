"""
From data to noise and back
===========================

A diffusion turns data into noise; its reverse process turns noise into data. Above: the density of
a mixture of two modes under VP as time goes from 0 to 1 (shade), with twenty paths. Below: twenty
paths of the reverse process. Look for their ends, on the left, which are in the two modes, about in
the proportions of the data.
"""

import matplotlib.pyplot as plt
import sdekit
import sdekit_diffusion as sd
import torch

law = sd.GaussianMixture([0.3, 0.7], [[-1.5], [1.0]], [0.02, 0.05])
vp = sd.VPSDE()
ts = sdekit.uniform(0.0, 1.0, 200)
paths = sdekit.solve(
    vp, law.sample(20, seed=0), ts, solver=sdekit.EulerMaruyama(), noise=sdekit.WhiteNoise(1),
    save="all",
).xs  # fmt: skip

reverse = sdekit.ReverseSDE(vp, lambda t, x: law.score(t, x, "vp"), eta=1.0)
x_T = torch.randn(20, 1, generator=torch.Generator().manual_seed(2))
back = sdekit.solve(
    reverse, x_T, sdekit.uniform(1.0, 1e-3, 400), solver=sdekit.EulerMaruyama(),
    noise=sdekit.WhiteNoise(3), save="all",
)  # fmt: skip

x = torch.linspace(-3.5, 3.5, 200)[:, None]
density = torch.stack([law.marginal(float(t), vp).log_prob(x).exp() for t in ts[1:]])
fig, axes = plt.subplots(2, 1, figsize=(7, 5), sharex=True, sharey=True)
for ax, times, states in ((axes[0], ts, paths), (axes[1], back.ts, back.xs)):
    ax.pcolormesh(ts[1:], x[:, 0], density.sqrt().T, cmap="Blues", shading="gouraud")
    ax.plot(times, states[:, :, 0], color="C3", lw=0.5)
    ax.set_ylabel("x")
axes[0].set_title("forward: look for modes that widen and merge", loc="left")
axes[1].set_title("reverse, from right to left", loc="left")
axes[1].set_xlabel("time")
