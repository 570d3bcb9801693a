"""diffrax's solvers on our Brownian paths, for `order.py`, where diffrax is installed."""

# pyright: reportMissingImports=false

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdekit import BrownianPath

INSTALLED = importlib.util.find_spec("diffrax") is not None

METHODS = {
    "additive": ("Euler", "SEA", "SRA1", "ShARK", "SPaRK", "SlowRK", "GeneralShARK"),
    "diagonal": ("Euler", "ItoMilstein"),
    "diagonal, Stratonovich": (
        "Heun",
        "EulerHeun",
        "Midpoint",
        "ReversibleHeun",
        "SPaRK",
        "SlowRK",
        "GeneralShARK",
    ),
}


def ends(name: str, x0: Tensor, path: BrownianPath, steps: int) -> dict[str, Tensor]:
    """x at 1 by each of diffrax's methods, forwards on [0, 1]; the equations are those of
    `order.py` of that name.
    """
    if name not in METHODS:
        return {}
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    w, h = _increments(x0, path, steps)
    recorded = _recorded_path(steps)
    terms = _equation(name)

    def end(solver: Any, y0: Any, w: Any, h: Any) -> Any:
        return diffrax.diffeqsolve(
            terms(recorded(w, h)), solver, 0.0, 1.0, 1 / steps, y0, max_steps=2 * steps
        ).ys[-1]

    result = {}
    for method in METHODS[name]:
        x = jax.vmap(end, in_axes=(None, 0, 0, 0))(
            getattr(diffrax, method)(), jnp.asarray(x0.numpy()), w, h
        )
        result[method] = torch.tensor(x.tolist(), dtype=torch.float64)
    return result


def _increments(x0: Tensor, path: BrownianPath, steps: int) -> tuple[Any, Any]:
    """W and H of each step of the grid as jax's arrays, `(batch, steps, 1)`."""
    import jax.numpy as jnp

    grid = [i / steps for i in range(steps + 1)]
    found = list(path.increments(grid, x0, (1,), levy=True))
    # Path by path: Milstein's Jacobian of all of them together would not fit.
    w, h = (
        jnp.asarray(torch.stack([getattr(i, part) for i in found], dim=1).numpy())
        for part in ("w", "h")
    )
    return w, h


def _recorded_path(steps: int) -> Any:
    """The class of Brownian paths with given increments on a grid of equal steps."""
    import diffrax
    import jax.numpy as jnp

    class Recorded(diffrax.AbstractBrownianPath):
        """The increments of the steps of the grid, looked up."""

        w: Any
        h: Any
        levy_area: Any = diffrax.SpaceTimeLevyArea

        @property
        def t0(self) -> float:
            return 0.0

        @property
        def t1(self) -> float:
            return 1.0

        def evaluate(
            self,
            t0: Any,
            t1: Any = None,
            left: bool = True,
            use_levy: bool = False,
        ) -> Any:
            i = jnp.round(t0 * steps).astype(int)
            return (
                diffrax.SpaceTimeLevyArea(dt=t1 - t0, W=self.w[i], H=self.h[i])
                if use_levy
                else self.w[i]
            )

    return Recorded


def _equation(name: str) -> Callable[[Any], Any]:
    """diffrax's terms of the equation of that name, as a function of the Brownian path."""
    import diffrax
    import jax.numpy as jnp
    import lineax

    def drift(t: Any, x: Any, args: Any) -> Any:
        return jnp.sin(2 * x) + 0.5 * jnp.cos(3 * t) - 0.3 * x

    def diffusion(t: Any, x: Any, args: Any) -> Any:
        if name == "additive":
            return lineax.DiagonalLinearOperator((0.6 + 0.3 * jnp.sin(2 * t)) * jnp.ones(1))
        return lineax.DiagonalLinearOperator(0.8 + 0.3 * jnp.cos(2 * x) + 0.2 * jnp.sin(3 * t))

    def terms(path: Any) -> Any:
        return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path))

    return terms
