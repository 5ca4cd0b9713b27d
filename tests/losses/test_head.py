"""Three ways through the head, one number: against the plain softmax over all logits, in value and gradient."""

import math

import pytest
import torch

from losses.head import entropy_of, head_logps

WAYS = {"frozen": dict(frozen=True), "kept": dict(keep_bytes=10**6), "made twice": {}}
UP = torch.randn(11, generator=torch.Generator().manual_seed(5))  # any gradient from above


def inputs(dtype=torch.float32, bias=True):
    g = torch.Generator().manual_seed(0)
    states, targets = torch.randn(11, 16, generator=g).to(dtype), torch.randint(0, 50, (11,), generator=g)
    weight = (0.3 * torch.randn(50, 16, generator=g)).to(dtype)
    return states, weight, torch.randn(50, generator=g).to(dtype) if bias else None, targets


def plain(states, weight, bias, targets, temperature=1.0, scale=1.0, softcap=None):
    z = torch.nn.functional.linear(states, weight, bias) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    logps = torch.log_softmax(z / temperature, -1)
    return logps.gather(-1, targets[:, None]).squeeze(-1), -(logps.exp() * logps).sum(-1)


def test_pencil_value_and_gradient():
    # h = [1, 2], W the unit vectors and 0: u = [1, 2, 0], log p_0 = 1 − log(e + e² + 1) = 1 − 2.407606
    # ∂/∂h = W_0 − Σ p_v W_v = [1, 0] − [.244728, .665241]; H = .244728 · 1.407606 + .665241 · .407606 + .090031 · 2.407606
    states, weight = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    logps, entropy = head_logps(states, weight, torch.tensor([0]))
    assert logps.item() == pytest.approx(-1.407606, abs=1e-6) and entropy.item() == pytest.approx(0.832396, abs=1e-6)
    logps.backward()
    assert states.grad[0].tolist() == pytest.approx([0.755272, -0.665241], abs=1e-6)


def test_pencil_value_with_scale_and_cap():
    # u = [1, 2, 0], halved and capped at ±1: tanh [.5, 1, 0] = [.462117, .761594, 0]
    # log p_0 = .462117 − log(1.587431 + 2.141688 + 1) = .462117 − 1.553738
    # ∂ log p_0 / ∂u_0 = (1 − .335670) · (1 − .462117²) · ½ = .261228;  u_1: −.452866 · (1 − .761594²) · ½ = −.095097
    states, weight = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    logps, _ = head_logps(states, weight, torch.tensor([0]), scale=0.5, softcap=1.0)
    assert logps.item() == pytest.approx(-1.091621, abs=2e-6)
    logps.backward()
    assert states.grad[0].tolist() == pytest.approx([0.261228, -0.095097], abs=2e-6)


def test_entropy_by_hand():
    # p = ¼, ¼, ½: ½ log 4 + ½ log 2 = 1.5 log 2; an entry that is ruled out adds nothing
    log_p = torch.tensor([[0.25, 0.25, 0.5, 0.0]]).log()
    assert entropy_of(log_p).tolist() == pytest.approx([1.039721], abs=1e-6)
    assert log_p[0, 3] == -math.inf  # and is left as it was


@pytest.mark.parametrize("form", [{}, {"temperature": 0.7}, {"scale": 0.25}, {"softcap": 3.0}, {"temperature": 1.3, "scale": 2.0, "softcap": 5.0}])  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_every_way_is_the_plain_one(way, form, chunk_size):
    options = dict(WAYS[way])
    frozen = options.pop("frozen", False)
    states, weight, bias, targets = inputs()
    trained = [states.requires_grad_()] + ([] if frozen else [weight.requires_grad_(), bias.requires_grad_()])
    expected = plain(states, weight, bias, targets, **form)
    logps, entropy = head_logps(states, weight, targets, head_bias=bias, chunk_size=chunk_size, **form, **options)
    torch.testing.assert_close(logps, expected[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(entropy, expected[1], atol=4e-6, rtol=0)
    got = torch.autograd.grad((logps * UP).sum(), trained, retain_graph=True)
    for a, e in zip(got, torch.autograd.grad((expected[0] * UP).sum(), trained, retain_graph=True), strict=True):
        torch.testing.assert_close(a, e, atol=2e-6, rtol=2e-6)
    # an entropy bonus: the entropy's own gradient, which none of the kept tensors holds
    both = torch.autograd.grad((logps * UP).sum() + (entropy * UP.flip(0)).sum(), trained)
    for a, e in zip(both, torch.autograd.grad((expected[0] * UP).sum() + (expected[1] * UP.flip(0)).sum(), trained), strict=True):  # fmt: skip
        torch.testing.assert_close(a, e, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradient_by_finite_differences(way):
    options = dict(WAYS[way])
    frozen = options.pop("frozen", False)
    states, weight, bias, targets = inputs(torch.float64)
    trained = [states.requires_grad_()] + ([] if frozen else [weight.requires_grad_(), bias.requires_grad_()])

    def of(states, weight=weight, bias=bias):
        return head_logps(states, weight, targets, head_bias=bias, temperature=0.8, softcap=2.0, chunk_size=5, **options)[0]  # fmt: skip

    assert torch.autograd.gradcheck(of, trained)


def kept_by(frozen, keep_bytes):
    """The sizes of what the backward pass is given, largest first."""
    states, weight, _, targets = inputs(bias=False)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        head_logps(states.requires_grad_(), weight.requires_grad_(not frozen), targets, keep_bytes=keep_bytes)
    return sorted(sizes, reverse=True)


def test_what_is_kept():
    # N = 11, V = 50, H = 16: states 176, weight 800, targets 11
    assert kept_by(frozen=True, keep_bytes=10**6) == [800, 176, 176, 11]  # J W beside them: nothing of size V
    assert kept_by(frozen=False, keep_bytes=2200) == [800, 550, 176, 11]  # J, 11 · 50 · 4 bytes
    assert kept_by(frozen=False, keep_bytes=2199) == [800, 176, 11]


def test_without_a_gradient_nothing_more_is_made():
    states, weight, _, targets = inputs(bias=False)
    with torch.no_grad():
        logps, _ = head_logps(states, weight, targets, keep_bytes=10**6)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, plain(states, weight, None, targets)[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_an_entry_that_is_ruled_out(way):
    options = dict(WAYS[way])
    frozen = options.pop("frozen", False)
    states, weight, bias, targets = inputs()
    bias[49], targets[targets == 49] = -math.inf, 3
    logps, entropy = head_logps(states.requires_grad_(), weight.requires_grad_(not frozen), targets, head_bias=bias, **options)  # fmt: skip
    assert torch.isfinite(logps).all() and torch.isfinite(entropy).all()
    logps.sum().backward()
    assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("way", WAYS)
def test_under_autocast(way):
    options = dict(WAYS[way])
    frozen = options.pop("frozen", False)
    states, weight, _, targets = inputs(bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = head_logps(states.requires_grad_(), weight.requires_grad_(not frozen), targets, **options)
    assert logps.dtype == torch.float32
    (logps * UP).sum().backward()
    exact = torch.autograd.grad((plain(states, weight, None, targets)[0] * UP).sum(), states)[0]
    assert states.grad.dtype == torch.float32
    assert (states.grad - exact).abs().max() < 0.03 * exact.abs().max()  # bf16 has three digits


def test_purity():
    states, weight, bias, targets = inputs()
    before = [x.clone() for x in (states, weight, bias, targets)]
    logps, _ = head_logps(states.requires_grad_(), weight, targets, head_bias=bias, softcap=2.0, keep_bytes=10**6)
    logps.sum().backward()
    assert all(torch.equal(a, e) for a, e in zip((states, weight, bias, targets), before, strict=True))
