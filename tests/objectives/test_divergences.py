"""The table of divergences: values by hand, independent references in NumPy, numerics, user-defined rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from understudy.objectives import DIVERGENCES, Divergence, clipped_reward, divergence

H = torch.linspace(-6, 6, 49, dtype=torch.float64)
LOG2 = math.log(2)
REWARD = {
    "reverse_kl": lambda u: np.log(u),
    "js": lambda u: np.log(1 + u) - LOG2,
    "forward_kl": lambda u: u - 1,
    "log_d": lambda u: np.log(u / (1 + u)),
    "alpha:0.3": lambda u: (u**0.3 - 1) / 0.3,
    "alpha:0.5": lambda u: 2 * (np.sqrt(u) - 1),
    "alpha:2": lambda u: (u**2 - 1) / 2,
    "alpha:-0.5": lambda u: (u**-0.5 - 1) / -0.5,
    "alpha:0": lambda u: np.log(u),
    "alpha:1": lambda u: u - 1,
}
GENERATOR = {
    "reverse_kl": lambda u: -np.log(u),
    "js": lambda u: -(u + 1) * np.log((1 + u) / 2) + u * np.log(u),
    "forward_kl": lambda u: u * np.log(u),
    "alpha:0.3": lambda u: (u**0.3 - 0.3 * u + 0.3 - 1) / (0.3 * (0.3 - 1)),
    "alpha:2": lambda u: (u**2 - 2 * u + 1) / 2,
    "alpha:-0.5": lambda u: (u**-0.5 + 0.5 * u - 1.5) / (0.5 * 1.5),
    "alpha:0": lambda u: -np.log(u) + u - 1,
    "alpha:1": lambda u: u * np.log(u) - u + 1,
}


@pytest.mark.parametrize("name", REWARD)
def test_reward_is_the_table_constants_included(name: str) -> None:
    expected = REWARD[name](np.exp(H.numpy()))
    np.testing.assert_allclose(divergence(name).reward(H).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GENERATOR)
def test_generator_is_the_table(name: str) -> None:
    u = H.exp()
    np.testing.assert_allclose(divergence(name).f(u).numpy(), GENERATOR[name](u.numpy()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", REWARD)
def test_reward_is_u_slope_minus_f_up_to_the_stated_offset(name: str) -> None:
    row, u = divergence(name), H.exp().requires_grad_(True)
    (slope,) = torch.autograd.grad(row.f(u).sum(), u)
    legendre = (u * slope - row.f(u)).detach()
    torch.testing.assert_close(row.reward(H), legendre + row.reward_offset, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(row.variational_output(H), slope, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(row.conjugate(slope), legendre, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(row.log_ratio_from_variational(slope), H, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["reverse_kl", "js", "forward_kl", "alpha:0", "alpha:0.5", "alpha:1", "alpha:2"])
def test_reward_is_zero_where_expert_and_policy_agree(name: str) -> None:
    assert divergence(name).reward(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-15)


def test_conjugates_by_hand() -> None:
    t = torch.tensor([-2.0, -0.5], dtype=torch.float64)
    torch.testing.assert_close(divergence("reverse_kl").conjugate(t), -1 - (-t).log())
    torch.testing.assert_close(divergence("js").conjugate(t), -(2 - t.exp()).log())
    torch.testing.assert_close(divergence("forward_kl").conjugate(t), (t - 1).exp())
    torch.testing.assert_close(divergence("alpha:2").conjugate(t), torch.tensor([-0.5, -0.375], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "edge"), [("reverse_kl", 0.0), ("js", LOG2), ("log_d", -LOG2), ("alpha:0.5", 2.0), ("alpha:0", 1.0)]
)
def test_conjugate_is_infinite_above_its_domain(name: str, edge: float) -> None:
    row = divergence(name)
    assert row.variational_range == (-math.inf, pytest.approx(edge))
    assert row.conjugate(torch.tensor(edge + 0.1, dtype=torch.float64)).item() == math.inf
    raw = torch.linspace(-10, 10, 21, dtype=torch.float64)
    assert (row.variational_output(raw) < edge).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*DIVERGENCES, "alpha:0.3", "alpha:2", "alpha:-1"])
def test_no_overflow_in_any_dtype(name: str, dtype: torch.dtype) -> None:
    h = torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4], dtype=dtype)
    row = divergence(name)
    for value in (row.reward(h), row.variational_output(h), row.conjugate_of_output(h)):
        assert value.dtype == dtype
        assert value.isfinite().all(), (name, value)
    assert (row.reward(h).double().diff() >= 0).all()


def test_alpha_is_continuous_at_its_limits() -> None:
    for limit, name in ((0.0, "reverse_kl"), (1.0, "forward_kl")):
        exact = divergence(f"alpha:{limit}")
        torch.testing.assert_close(exact.reward(H), divergence(name).reward(H), rtol=1e-12, atol=1e-12)
        for step in (1e-13, 1e-9, -1e-9, 1e-6):
            near = divergence(f"alpha:{limit + step!r}")
            torch.testing.assert_close(near.reward(H), exact.reward(H), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(near.f(H.exp()), exact.f(H.exp()), rtol=1e-4, atol=1e-4)


def test_at_ratio_zero_f_is_its_limit() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    assert divergence("js").f(zero).item() == pytest.approx(LOG2)
    assert divergence("forward_kl").f(zero).item() == 0
    assert divergence("alpha:0.5").f(zero).item() == pytest.approx(2.0)
    assert divergence("alpha:2").f(zero).item() == pytest.approx(0.5)
    assert divergence("reverse_kl").f(zero).item() == math.inf


def test_user_defined_generator() -> None:
    row = Divergence.from_generator("chi2", lambda u: (u - 1) ** 2)
    u = H.exp()
    torch.testing.assert_close(row.reward(H), u**2 - 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(row.variational_output(H), 2 * (u - 1))
    t = torch.tensor([-1.5, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    conjugate = row.conjugate(t)
    torch.testing.assert_close(conjugate.detach(), (t + t**2 / 4).detach())
    (slope,) = torch.autograd.grad(conjugate.sum(), t)
    torch.testing.assert_close(slope, 1 + t.detach() / 2, rtol=1e-8, atol=1e-8)
    assert row.variational_range == (pytest.approx(-2.0), math.inf)


def test_user_defined_generator_is_taken_at_its_word() -> None:
    row = Divergence.from_generator("kl", lambda u: u * u.log())
    torch.testing.assert_close(row.reward(H), H.exp())
    same = Divergence.from_generator("js", DIVERGENCES["js"].generator)
    torch.testing.assert_close(same.reward(H), DIVERGENCES["js"].reward(H))


def test_user_defined_generator_works_without_gradients() -> None:
    row = Divergence.from_generator("chi2", lambda u: (u - 1) ** 2)
    with torch.no_grad():
        assert not row.reward(H).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(row.reward(torch.zeros(2)), torch.zeros(2))


@pytest.mark.parametrize(
    ("f", "message"),
    [(lambda u: u**2, r"f\(1\) = 1, not 0"), (lambda u: -((u - 1) ** 2), "not convex"), (torch.sin, "not 0")],
)
def test_a_bad_generator_is_refused(f: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Divergence.from_generator("bad", f)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("revers_kl", "Did you mean 'reverse_kl'"),
        ("jsd", "Did you mean 'js'"),
        ("alpha:x", "'x' is not a finite number"),
        ("alpha:nan", "not a finite number"),
        ("", "Known: reverse_kl, js, forward_kl, log_d"),
    ],
)
def test_unknown_names_get_a_hint(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(name)


def test_clipping_is_explicit_and_counted() -> None:
    h = torch.tensor([[-20.0, 1.0, 3.0, 50.0]])
    reward, fraction = clipped_reward(divergence("reverse_kl"), h, 10.0)
    assert reward.tolist() == [[-10.0, 1.0, 3.0, 10.0]]
    assert fraction.item() == 0.5
    _, fraction = clipped_reward(divergence("reverse_kl"), h, 10.0, torch.tensor([[0, 1, 1, 1]]))
    assert fraction.item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="reward_clip > 0"):
        clipped_reward(divergence("js"), h, 0.0)


def test_adding_a_divergence_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIVERGENCES, "chi2", Divergence.from_generator("chi2", lambda u: (u - 1) ** 2))
    assert divergence("chi2").reward(torch.zeros(1)).item() == 0
    assert dataclasses.is_dataclass(divergence("chi2"))
