"""Gives every method faulty models, and every solver faulty drifts, diffusions and scores, and
counts what comes of it.

A case is right (its result is that of a sound function of the same meaning), refused by the
library, or raised by torch or by the function itself. Anything else is a silent error: a wrong
result, or a change of the caller's x0 or x_T. The script exits with 1 unless there are none. What
bypasses torch's counters of changes, `x.data` and `x.numpy()`, is not tried: docs/networks.md says
that it is not seen.

`python benchmarks/attack.py`, or `python benchmarks/attack.py --quick` for one case in 101
"""

import argparse
import functools
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _bench import environment, save
from _faults import (
    FAULTS,
    IN_PLACE,
    KINDS,
    SHAPES,
    SHARED,
    Fault,
    Function,
    Holder,
    Layers,
    Network,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import sdekit
from sdekit import (
    ODE,
    SDE,
    AbstractSDE,
    AbstractSolver,
    Langevin,
    PIDController,
    PredictorCorrector,
    ReverseSDE,
    SemiLinear,
    WhiteNoise,
    all_solvers,
    solve,
    uniform,
)
from sdekit_diffusion import (
    METHODS,
    VPSDE,
    Noised,
    RePaint,
    ScoreModel,
    encode,
    log_likelihood,
    sample,
)

OUTCOMES = ("right", "refused", "raised", "SILENT")
QUICK = 101  # one case in this number of them; prime, so that it meets all faults and all methods
LIBRARY = tuple(
    str(Path(str(package.__file__)).parent)
    for package in map(__import__, ("sdekit", "sdekit_diffusion"))
)
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "plain": torch.no_grad,
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@dataclass(frozen=True)
class Case:
    """One attack: whom, with what, and in which mode.

    Attributes:
        target: the method or solver.
        fault: what is wrong.
        run: the attack, given the caller's tensor.
        right: the same with a sound function; None where there is none.
        start: the caller's tensor, made again for each run.
        mode: a name in `MODES`.
    """

    target: str
    fault: str
    run: Callable[[Tensor], Tensor]
    right: Callable[[Tensor], Tensor] | None
    start: Callable[[], Tensor]
    mode: str = "plain"


def outcome(case: Case) -> str:
    """What comes of a case."""
    with MODES[case.mode]():
        start = case.start()
        untouched = start.clone()
        try:
            found = case.run(start)
        except Exception as error:  # whatever faulty functions cause
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            kind = "refused" if where.startswith(LIBRARY) else "raised"
            return kind if torch.equal(start, untouched) else "SILENT"
        if case.right is None or not torch.equal(start, untouched):
            return "SILENT"
    with MODES[case.mode]():
        expected = case.right(case.start())
    alike = found.shape == expected.shape and found.dtype == expected.dtype
    return "right" if alike and torch.allclose(found, expected, rtol=1e-4, atol=1e-5) else "SILENT"


# Methods and models


def _start() -> Tensor:
    return torch.tensor([[0.7, -0.4], [-1.2, 0.3], [0.2, 1.5], [0.9, 0.8]])


def _targets() -> dict[str, Callable[[Any, Tensor], Tensor]]:
    """Methods of `sample`, and what else asks a model."""
    few = {"reverse_diffusion": 24, "ancestral": 24, "ncsn": 3, "ncsnv2": 3}

    def method(name: str, model: Any, x: Tensor) -> Tensor:
        steps = few.get(name, 5) if METHODS[name].steps else None
        return sample(model, x_T=x, method=name, seed=0, steps=steps)

    found: dict[str, Callable[[Any, Tensor], Tensor]] = {
        name: functools.partial(method, name) for name in METHODS
    }

    def repaint(model: Any, x: Tensor) -> Tensor:
        known = RePaint(x, torch.tensor([True, False]), resamplings=2, jump=2, steps=5)
        return sample(model, method=known, seed=0)

    return found | {
        "encode": encode,
        "repaint": repaint,
        "noised": lambda model, x: sample(model, start=Noised(x, level=1.0), seed=0, steps=5),
        "log_likelihood": lambda model, x: log_likelihood(model, x).value,
    }


def _model(net: nn.Module, *, training: bool = False) -> ScoreModel:
    return ScoreModel(net, "vp", "noise", shape=(2,)).train(training)


def _of_networks() -> Iterator[Case]:
    for target, ask in _targets().items():
        for fault in FAULTS:
            for mode in ("plain", "inference"):

                def run(x: Tensor, make: Any = fault.make, ask: Any = ask) -> Tensor:
                    return ask(_model(Network(make)), x)

                right = fault.right and functools.partial(run, make=fault.right)
                yield Case(target, fault.name, run, right, _start, mode)


def _layers(*, training: bool) -> dict[str, Callable[[], ScoreModel]]:
    return {
        "dropout in training mode": lambda: _model(Layers(nn.Dropout(0.5)), training=training),
        "batch normalisation in training mode": lambda: _model(
            Layers(nn.BatchNorm1d(2)), training=training
        ),
    }


def _sound() -> ScoreModel:
    return _model(Network(lambda h: h))


def _half() -> ScoreModel:
    return _model(Network(lambda h: h)).half()


WRAPPED: dict[str, Callable[[], Any]] = {
    "torch.compile(model)": lambda: torch.compile(_sound(), backend="eager"),
    "torch.compile(net)": lambda: _sound().with_network(
        torch.compile(Network(lambda h: h), backend="eager")
    ),
    "DataParallel(model)": lambda: nn.DataParallel(_sound()),
    "AveragedModel(model)": lambda: AveragedModel(_sound()),
    "a module that holds a model": lambda: Holder(_sound()),
    "ScoreModel(model)": lambda: ScoreModel(_sound(), "vp", "data", shape=(2,)),
    "model.forward": lambda: _sound().forward,
    "model.score": lambda: _sound().score,
}


def _of_models() -> Iterator[Case]:
    for target, ask in _targets().items():
        for name, make in _layers(training=True).items():
            sound = _layers(training=False)[name]
            yield Case(
                target,
                name,
                lambda x, m=make, a=ask: a(m(), x),
                lambda x, m=sound, a=ask: a(m(), x),
                _start,
            )
        for name, make in WRAPPED.items():
            yield Case(
                target,
                name,
                lambda x, m=make, a=ask: a(m(), x),
                lambda x, a=ask: a(_sound(), x),
                _start,
            )
    for name in WRAPPED:  # as plain scores, which is what they were taken for

        def run(x: Tensor, make: Any = WRAPPED[name]) -> Tensor:
            return sample(make(), x_T=x, sde="vp", shape=(2,), steps=5, method="ddim", seed=0)

        yield Case(
            "ddim, sde= and shape=", name, run, lambda x: _targets()["ddim"](_sound(), x), _start
        )


# Solvers and equations


def _drift(x: Tensor, t: Tensor) -> Tensor:
    return (0.3 - x) * (1 + 0.1 * t)


def _noise(x: Tensor, t: Tensor) -> Tensor:
    return 0.2 + 0.05 * x


def _swapped(function: Function) -> Callable[[Any, Tensor], Any]:
    """With t first; as a tensor, where a score gets a number."""
    return lambda t, x: function(x, t if isinstance(t, Tensor) else torch.tensor(t))


def solvers() -> list[AbstractSolver]:
    """Every public solver."""
    corrected = PredictorCorrector(sdekit.EulerMaruyama(), Langevin())
    return [*all_solvers(), sdekit.ExponentialEuler(-1.0), sdekit.ExponentialHeun(-1.0), corrected]


def _equations(solver: AbstractSolver) -> Iterator[tuple[str, Callable[[Function], AbstractSDE]]]:
    """Equations that a solver suits, by the function that is attacked."""
    calculus: Any = solver.sde_type
    backwards = isinstance(solver, (PredictorCorrector, sdekit.Ancestral, sdekit.ReverseDiffusion))
    if "none" in solver.order and not backwards:
        yield "f", lambda h: ODE(_swapped(h))
        yield "f, with a linear part", lambda h: SemiLinear(-1.0, _swapped(h))
    for kind in ("additive", "diagonal"):
        if kind in solver.order and not backwards:
            yield (
                f"f, {kind} noise",
                lambda h, k=kind: SDE(_swapped(h), lambda t, x: 0.1 + 0 * x, k, calculus),
            )
    if "diagonal" in solver.order and not backwards:
        yield "g", lambda h: SDE(_swapped(_drift), _swapped(h), "diagonal", calculus)
    if "additive" in solver.order:
        yield "score", lambda h: ReverseSDE(VPSDE(), _swapped(h))


def _of_solvers() -> Iterator[Case]:
    for solver in solvers():
        for what, equation in _equations(solver):
            sound = _noise if what == "g" else _drift
            for fault in FAULTS:
                yield from _solved(solver, what, equation, sound, fault)


def _solved(
    solver: AbstractSolver,
    what: str,
    equation: Callable[[Function], AbstractSDE],
    sound: Function,
    fault: Fault,
) -> Iterator[Case]:
    ends = (0.9, 0.1) if what == "score" else (0.1, 0.9)
    ways: dict[str, Any] = {"": {}}
    if solver.embedded and not what.startswith("f,") and what != "g":
        ways["adaptive "] = {"control": PIDController(1e-3, 1e-3)}
    for way, more in ways.items():
        for mode in MODES:

            def run(x: Tensor, make: Any = fault.make, more: Any = more) -> Tensor:
                grid = ends if more else uniform(*ends, 24 if what == "score" else 6)
                noise = None if not more else sdekit.BrownianPath(0, sorted(ends))
                return solve(
                    equation(make(sound)),
                    x,
                    grid,
                    solver=solver,
                    noise=noise or WhiteNoise(0),
                    **more,
                ).x.detach()

            right = fault.right and functools.partial(run, make=fault.right)
            if what == "g" and fault.name in _MEANT_FOR_G:
                right = _MEANT_FOR_G[fault.name] and functools.partial(
                    run, make=_MEANT_FOR_G[fault.name]
                )
            name = f"{way}{type(solver).__name__}: {what}"
            yield Case(name, fault.name, run, right, _start, mode)


def _spread(change: Callable[[Tensor], Tensor]) -> Callable[[Function], Function]:
    return lambda h: lambda x, t: change(h(x, t)).expand_as(x)


# A g may be smaller than x, and is broadcast as torch does.
_MEANT_FOR_G: dict[str, Callable[[Function], Function]] = {
    "one column": _spread(lambda y: y[:, :1]),
    "one row": _spread(lambda y: y[:1]),
    "one number": _spread(lambda y: y.mean()),
}


# Calls that are handed on to torchdiffeq and torchsde

ODE_CALLS: dict[str, dict[str, Any]] = {
    "odeint, scipy_solver": {"method": "scipy_solver", "rtol": 1e-5, "atol": 1e-6},
    "odeint, fixed_adams": {"method": "fixed_adams", "options": {"step_size": 0.1}},
    "odeint, adaptive_heun": {"method": "adaptive_heun", "rtol": 1e-3, "atol": 1e-3},
    "odeint, an event": {"event_fn": lambda t, y: t - 0.6, "rtol": 1e-4, "atol": 1e-4},
}
SDE_CALLS: dict[str, dict[str, Any]] = {
    "sdeint, adaptive": {"method": "heun", "adaptive": True, "rtol": 1e-2, "atol": 1e-2},
    "sdeint, log_ode": {"method": "log_ode"},
    "sdeint, milstein": {"method": "milstein"},
}


class Torchsde:
    """torchsde's equation with f and g."""

    noise_type = "diagonal"
    sde_type = "stratonovich"

    def __init__(self, f: Function, g: Function) -> None:
        self.f = _swapped(f)
        self.g = _swapped(g)


def _end(found: Any) -> Tensor:
    """The last state, of an event's pair too."""
    return (found if isinstance(found, Tensor) else found[1])[-1].detach()


def _of_handed_on() -> Iterator[Case]:
    ts = torch.tensor([0.1, 0.9])

    def ordinary(x: Tensor, h: Function, **call: Any) -> Tensor:
        return _end(sdekit.odeint(_swapped(h), x, ts, **call))

    def adjoint(x: Tensor, h: Function, **call: Any) -> Tensor:
        return _end(sdekit.odeint_adjoint(_swapped(h), x, ts, **call, adjoint_params=()))

    def stochastic(x: Tensor, f: Function, g: Function, *, ours: bool, **call: Any) -> Tensor:
        torch.manual_seed(0)  # of the Brownian motion
        equation = (
            SDE(_swapped(f), _swapped(g), "diagonal", "stratonovich") if ours else Torchsde(f, g)
        )
        return _end(sdekit.sdeint(equation, x, ts, dt=0.2, **call))

    for name, call in ODE_CALLS.items():
        yield from _handed_on(name, lambda x, h, c=call: ordinary(x, h, **c), _drift)
        yield from _handed_on(f"{name}, adjoint", lambda x, h, c=call: adjoint(x, h, **c), _drift)
    for name, call in SDE_CALLS.items():
        for ours in (False, True):
            of = "an equation of sdekit's" if ours else "one of torchsde's"

            def drift(x: Tensor, h: Function, call: Any = call, ours: Any = ours) -> Tensor:
                return stochastic(x, h, _noise, ours=ours, **call)

            def diffusion(x: Tensor, h: Function, call: Any = call, ours: Any = ours) -> Tensor:
                return stochastic(x, _drift, h, ours=ours, **call)

            yield from _handed_on(f"{name}, f of {of}", drift, _drift)
            yield from _handed_on(f"{name}, g of {of}", diffusion, _noise, ours=ours)


def _handed_on(
    name: str, solved: Callable[..., Tensor], sound: Function, *, ours: bool = False
) -> Iterator[Case]:
    # What is not finite, they return as torchdiffeq and torchsde do.
    for fault in (*IN_PLACE, *SHARED, *KINDS, *SHAPES):
        make = _MEANT_FOR_G.get(fault.name, fault.right) if ours else fault.right
        right = make and (lambda x, m=make: solved(x, m(sound)))
        for mode in MODES:
            yield Case(
                name, fault.name, lambda x, m=fault.make: solved(x, m(sound)), right, _start, mode
            )


def cases() -> list[Case]:
    """All of them."""
    return [*_of_networks(), *_of_models(), *_of_solvers(), *_of_handed_on()]


def attacked(chosen: list[Case]) -> tuple[dict[str, Counter[str]], list[Case]]:
    """Counts of outcomes by fault, and the silent errors."""
    counts: dict[str, Counter[str]] = {}
    silent: list[Case] = []
    for case in chosen:
        with warnings.catch_warnings(), torch.random.fork_rng([]):
            warnings.simplefilter("ignore")
            found = outcome(case)
        counts.setdefault(case.fault, Counter())[found] += 1
        if found == "SILENT":
            silent.append(case)
    return counts, silent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"one case in {QUICK}")
    parser.add_argument("--only", default="", help="cases whose target or fault contains this")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    chosen = [case for case in cases() if options.only in f"{case.target} / {case.fault}"]
    chosen = chosen[::QUICK] if options.quick else chosen
    result: dict[str, Any] = {"environment": environment(seed=0, cases=len(chosen))}
    counts, silent = attacked(chosen)
    print(f"{'':60}" + "".join(f"{name:>10}" for name in OUTCOMES))
    for fault, count in counts.items():
        print(f"{fault:60}" + "".join(f"{count[name]:10}" for name in OUTCOMES))
    total = sum(counts.values(), Counter())
    print(f"{'all':60}" + "".join(f"{total[name]:10}" for name in OUTCOMES))
    for case in silent:
        print(f"SILENT: {case.target} / {case.fault} / {case.mode}")
    print(
        f"{len(silent)} silent errors in {len(chosen)} cases, {time.perf_counter() - began:.0f} s"
    )
    if not options.quick and not options.only:
        save(
            "attack",
            result
            | {
                "counts": {name: dict(count) for name, count in counts.items()},
                "silent": len(silent),
            },
        )
    return bool(silent)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
