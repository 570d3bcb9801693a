"""benchmarks/attack.py: a part of its cases, and that it sees silent errors."""

import attack
import pytest
import torch

from sdekit._solve.counted import Counted

CASES = attack.cases()


def named(target, fault, mode="plain"):
    return next(
        case for case in CASES if (case.target, case.fault, case.mode) == (target, fault, mode)
    )


def test_no_silent_errors(capsys):
    assert attack.main(["--quick"]) == 0
    assert "0 silent errors in " in capsys.readouterr().out


def test_all_methods_and_solvers_are_attacked():
    targets = {case.target for case in CASES}
    assert set(attack.METHODS) <= targets
    for solver in attack.solvers():
        assert any(
            target.removeprefix("adaptive ").startswith(type(solver).__name__ + ": ")
            for target in targets
        ), solver


@pytest.mark.parametrize("target", ["RK4: f", "Heun: g", "AdamsBashforth: f"])
def test_a_wrong_result_is_seen(target, monkeypatch):
    """Without the guard that refuses changes in place."""
    case = named(target, "x.mul_ first")
    assert attack.outcome(case) == "refused"
    monkeypatch.setattr(
        Counted, "_guarded", lambda self, kind, name, function, *arguments: function(*arguments)
    )
    assert attack.outcome(case) == "SILENT"


def test_a_change_of_the_callers_tensor_is_seen():
    case = attack.Case("", "", lambda x: x.mul_(2), lambda x: 2 * x, lambda: torch.ones(2, 2))
    assert attack.outcome(case) == "SILENT"
    case = attack.Case("", "", lambda x: 2 * x, lambda x: 2 * x, lambda: torch.ones(2, 2))
    assert attack.outcome(case) == "right"
