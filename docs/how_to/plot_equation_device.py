"""
How do I solve on a GPU, in another precision, or with torch.compile?
=====================================================================

The initial state decides: a solve runs on its device and in its dtype, and the noise of a seed is
the same on every device and in every dtype, up to rounding. So precisions can be compared path by
path. Look at the differences on the right, which are of the size of accumulated rounding errors of
each dtype; on the left they are hardly visible.
"""

import matplotlib.pyplot as plt
import sdekit
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
equation = sdekit.SDE(
    lambda t, x: torch.sin(3 * x) - 0.5 * x, lambda t, x: 0.4 + 0.1 * torch.cos(x), "diagonal"
)
grid = sdekit.uniform(0.0, 4.0, 200)


def solved(dtype):
    x0 = torch.linspace(-2, 2, 1000, dtype=dtype, device=device)[:, None].clone()
    noise = sdekit.WhiteNoise(seed=0)
    return sdekit.solve(
        equation, x0, grid, solver=sdekit.Milstein(), noise=noise, save="all"
    ).xs[:, :, 0].double().cpu()  # fmt: skip


exact = solved(torch.float64)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3))
axes[0].plot(grid, exact[:, 400], lw=3, color="0.8", label="float64")
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    xs = solved(dtype)
    name = str(dtype).removeprefix("torch.")
    axes[0].plot(grid, xs[:, 400], lw=0.7, label=name)
    axes[1].semilogy(grid[1:], (xs - exact)[1:].square().mean(dim=1).sqrt(), label=name)
axes[0].set(xlabel="time", ylabel="x", title="one sample")
axes[0].legend()
axes[1].set(xlabel="time", ylabel="root mean square difference from float64")
axes[1].legend()

# %%
# Networks
# --------
# Move a network to the device and the dtype of the state, and likewise each tensor that f and g
# use. The times that f and g receive are already on the device, in float32 or float64.

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
net.to(device)
neural = sdekit.SDE(lambda t, x: net(x) - x, lambda t, x: 0.3, "additive")
x0 = torch.zeros(1000, 2, device=device)
with torch.no_grad():  # saves the memory of autograd
    x = sdekit.solve(neural, x0, grid, solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(0)).x
print(x.device.type, x.dtype, tuple(x.shape))

# %%
# torch.compile
# -------------
# Compile the network, or the drift. On a fixed grid it receives its time as a 0-dim tensor, so that
# it is compiled once and not at each step. ``backend="eager"`` tests this without a compiler; leave
# it out for speed.

compiled = torch.compile(net, fullgraph=True, backend="eager")
fast = sdekit.SDE(lambda t, x: compiled(x) - x, lambda t, x: 0.3, "additive")
with torch.no_grad():
    same = sdekit.solve(fast, x0, grid, solver=sdekit.ShARK(), noise=sdekit.WhiteNoise(0)).x
print(f"largest difference: {float((same - x).abs().max()):.1e}")

# %%
# No GPU was available for these pages, so that this script has only been run on a CPU. On a GPU
# prefer fixed grids and large batches: a solve on a grid synchronises with the host only at its
# end, and adaptive steps do so once per round. Many devices or processes: :doc:`/scaling`. Compiled
# gradients: :doc:`/gradients`. Reference: :func:`sdekit.solve`.
