from dataclasses import dataclass, field

import torch
from torch import nn

from sdekit_diffusion import DDPM, VPSDE, linear_betas
from sdekit_diffusion._arguments.immutable import is_immutable


def test_what_may_be_a_key():
    class Other(VPSDE):  # may hold more than the fields of VPSDE
        pass

    assert is_immutable(VPSDE())
    assert not is_immutable(Other())
    assert is_immutable(DDPM(linear_betas(10)))

    @dataclass(frozen=True)
    class Held:
        value: object

    assert is_immutable(Held(1.0))
    assert not is_immutable(Held(torch.tensor(1.0)))
    assert not is_immutable(Held([1.0]))
    assert is_immutable(Held((1, ("a", None), VPSDE())))
    assert not is_immutable(Held((1.0, [])))
    assert not is_immutable(Held(nn.Linear(1, 1)))  # is hashed by its identity
    assert not is_immutable(Held(Held(object())))

    @dataclass(frozen=True)
    class HeldApart:
        value: object = field(compare=False)

    assert not is_immutable(HeldApart(1.0))

    @dataclass(frozen=True, slots=True)
    class Slotted:
        value: object

    assert is_immutable(Slotted(1.0))
    held = Held(1.0)
    object.__setattr__(held, "other", 1.0)
    assert not is_immutable(held)
    assert is_immutable(VPSDE().tabulated([0.5, 1.0]))
