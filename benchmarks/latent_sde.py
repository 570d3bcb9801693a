"""A latent stochastic equation trained on paths of the Lorenz attractor (Li et al. 2020, section
7.2), by torchsde and by sdekit with one import changed.

An encoder reads a path backwards, dz = f dt + g dW is the posterior, dz = h dt + g dW the prior;
the bound is log p(x | z) less the divergence of the two, which `logqp=True` integrates along z.
Printed are the difference of the bound and of its gradient on the same Brownian motion, and the
time of a training step, forward and backward, over that of torchsde by the same method and by its
adjoint; and that of a bare loop, which draws its noise by torch and checks nothing, as a bound of
what a solver can save. `python benchmarks/latent_sde.py`, five minutes on one thread.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torchsde
from _bench import environment, interleaved, ratio, save
from torch import Tensor, nn

import sdekit

SEED = 3
BATCH = 128
LATENT = 4
CONTEXT = 64
HIDDEN = 128
TIMES = 65  # each is the end of a step: between steps torchsde interpolates otherwise
END = 2.0
DT = 1 / 128  # times without rounding, at which both see the same increments
NOISE = 0.01
LORENZ = (10.0, 28.0, 8 / 3)


def data() -> tuple[Tensor, Tensor]:
    """Times, and standardised paths `(times, batch, 3)`."""

    def f(t: Any, x: Tensor) -> Tensor:
        a, b, c = LORENZ
        x1, x2, x3 = x.unbind(dim=1)
        return torch.stack([a * (x2 - x1), b * x1 - x2 - x1 * x3, x1 * x2 - c * x3], dim=1)

    ts = torch.linspace(0.0, END, TIMES)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(BATCH, 3, generator=generator)
    lorenz = sdekit.SDE(f, lambda t, x: torch.tensor([0.1, 0.28, 0.3]) * x)
    xs = sdekit.sdeint(lorenz, start, ts, dt=1e-3, bm=sdekit.WhiteNoise(SEED))
    xs = (xs - xs.mean(dim=(0, 1))) / xs.std(dim=(0, 1))
    return ts, xs + NOISE * torch.randn(xs.shape, generator=generator)


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with softplus between them."""
    found = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.Softplus())]
    return nn.Sequential(*found[:-1])


class LatentSDE(nn.Module):
    """The model; f sees the encoding of the path from t on."""

    noise_type = "diagonal"

    def __init__(self, sde_type: str) -> None:
        super().__init__()
        self.sde_type = sde_type
        self.encoder = nn.GRU(3, CONTEXT)
        self.start = nn.Linear(CONTEXT, 2 * LATENT)
        self.posterior = layers(LATENT + CONTEXT, HIDDEN, HIDDEN, LATENT)
        self.prior = layers(LATENT, HIDDEN, HIDDEN, LATENT)
        self.scale = nn.Parameter(torch.randn(2, LATENT, 16) / 4)  # g_i is a function of y_i
        self.decoder = nn.Linear(LATENT, 3)
        self.context: tuple[Tensor, Tensor] | None = None

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        assert self.context is not None
        ts, context = self.context
        i = min(int(torch.searchsorted(ts, t + DT / 2)), len(ts) - 1)  # whatever the rounding
        return self.posterior(torch.cat([y, context[i]], dim=1))

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        hidden = nn.functional.softplus(y[:, :, None] * self.scale[0])
        return torch.sigmoid((hidden * self.scale[1]).sum(dim=2))

    def loss(
        self,
        solve: Callable[..., Any],
        ts: Tensor,
        xs: Tensor,
        bm: object,
        *,
        adjoint: bool,
    ) -> Tensor:
        """Minus the bound, the mean over the batch."""
        context = self.encoder(xs.flip(0))[0].flip(0)
        self.context = (ts, context)
        mean, log_std = self.start(context[0]).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(SEED))
        z0 = mean + log_std.exp() * noise
        parts = (self.posterior, self.prior)
        params = [context, self.scale, *(p for part in parts for p in part.parameters())]
        more = {"adjoint_params": params} if adjoint else {}
        zs, divergence = solve(self, z0, ts, bm=bm, dt=DT, logqp=True, **more)
        decoded = torch.distributions.Normal(self.decoder(zs), 0.1)
        start = torch.distributions.Normal(mean, log_std.exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
        at_start = torch.distributions.kl_divergence(start, prior).sum(dim=1)
        fit = decoded.log_prob(xs).sum(dim=(0, 2))
        return (divergence.sum(dim=0) + at_start - fit).mean()


def bare(
    model: LatentSDE,
    z: Tensor,
    ts: Tensor,
    *,
    method: str,
    bm: object,
    dt: float,
    logqp: bool,
) -> tuple[Tensor, Tensor]:
    """`sdeint(model, z, ts, logqp=True)` by the arithmetic of both methods alone."""
    assert bm is None, "the noise is new"
    assert logqp, "the divergence is always integrated"

    def slopes(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f = model.f(t, y)
        g = model.g(t, y)
        rate = 0.5 * ((f - model.h(t, y)) / g).square().sum(dim=1)
        return f, g, rate

    each = round(float(ts[1] - ts[0]) / dt)
    times = torch.linspace(float(ts[0]), float(ts[-1]), each * (len(ts) - 1) + 1)
    zs = [z]
    divergence = torch.zeros(len(z))
    divergences = []
    auxiliary = z
    f, g, rate = slopes(times[0], z)
    for i, t in enumerate(times[1:], 1):
        dw = math.sqrt(dt) * torch.randn_like(z)
        if method == "euler":
            z = z + f * dt + g * dw
            divergence = divergence + rate * dt
            if i < len(times) - 1:
                f, g, rate = slopes(t, z)
        else:
            auxiliary = 2 * z - auxiliary + f * dt + g * dw
            f1, g1, rate1 = slopes(t, auxiliary)
            z = z + (f + f1) * (0.5 * dt) + (g + g1) * (0.5 * dw)
            divergence = divergence + (rate + rate1) * (0.5 * dt)
            f = f1
            g = g1
            rate = rate1
        if i % each == 0:
            zs.append(z)
            divergences.append(divergence)
            divergence = torch.zeros(len(z))
    return torch.stack(zs), torch.stack(divergences)


METHODS = {"euler": "ito", "reversible_heun": "stratonovich"}
SOLVES: dict[str, tuple[Callable[..., Any], bool]] = {
    "torchsde.sdeint": (torchsde.sdeint, False),
    "torchsde.sdeint_adjoint": (torchsde.sdeint_adjoint, True),
    "sdekit.sdeint": (sdekit.sdeint, False),
    "sdekit.sdeint_adjoint": (sdekit.sdeint_adjoint, True),
}
CASES: dict[str, tuple[Callable[..., Any], bool]] = {**SOLVES, "bare loop": (bare, False)}


def step(
    model: LatentSDE, method: str, name: str, ts: Tensor, xs: Tensor, *, same: bool
) -> tuple[float, Tensor]:
    """Minus the bound, and its gradient; same: on a given Brownian motion, which is slower."""
    solve, adjoint = CASES[name]
    bm = None
    if same:
        bm = torchsde.BrownianInterval(0.0, END, (BATCH, LATENT + 1), entropy=SEED, dt=DT)
    model.zero_grad()
    loss = model.loss(partial(solve, method=method), ts, xs, bm, adjoint=adjoint)
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return float(loss.detach()), torch.cat([gradient.reshape(-1) for gradient in gradients])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = environment(dtype="torch.float32", seed=SEED, batch=BATCH, steps=round(END / DT))
    ts, xs = data()
    rows = []
    for method, calculus in METHODS.items():
        torch.manual_seed(SEED)
        model = LatentSDE(calculus)
        found = {name: step(model, method, name, ts, xs, same=True) for name in SOLVES}
        cases = {name: partial(step, model, method, name, ts, xs, same=False) for name in CASES}
        seconds = interleaved(cases, arguments.repeats)
        loop = {
            "method": method,
            "name": "bare loop",
            "over sdeint": ratio(seconds, "bare loop", "torchsde.sdeint"),
            "over adjoint": ratio(seconds, "bare loop", "torchsde.sdeint_adjoint"),
        }
        print("  ".join(f"{key} {value}" for key, value in loop.items()), flush=True)
        rows.append(loop)
        for name, (loss, gradient) in found.items():
            theirs = found[name.replace("sdekit", "torchsde")]
            row = {
                "method": method,
                "name": name,
                "bound": loss - theirs[0],
                "gradient": float((gradient - theirs[1]).norm() / theirs[1].norm()),
                "over sdeint": ratio(seconds, name, "torchsde.sdeint"),
                "over adjoint": ratio(seconds, name, "torchsde.sdeint_adjoint"),
            }
            print(
                f"{method:16s} {name:24s} bound {loss:10.3f}, {row['bound']:+.1e} from torchsde's, "
                f"gradient {row['gradient']:.1e}; time over torchsde.sdeint "
                f"{row['over sdeint']:.2f}, over torchsde.sdeint_adjoint {row['over adjoint']:.2f}",
                flush=True,
            )
            rows.append(row)
    save("latent_sde", {**result, "rows": rows})


if __name__ == "__main__":
    main()
