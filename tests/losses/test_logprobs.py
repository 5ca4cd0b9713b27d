import math

import pytest
import torch

from losses.logprobs import chunked_token_logps, sequence_logps, token_entropy, token_logps

LOGITS = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)], [9.0, 9.0, 9.0]]])  # [1, 3, 3]
IDS = torch.tensor([[1, 0, 2]])


def test_pencil_value():
    # position 0 scores id 0 under [2, 0, 0]: 2 − log(e² + 2) = 2 − log 9.389056 = −0.239545
    # position 1 scores id 2 under [0, 0, log 2]: log 2 − log(1 + 1 + 2) = −log 2 = −0.693147
    assert token_logps(LOGITS, IDS)[0].tolist() == pytest.approx([-0.239545, -0.693147], abs=1e-6)


def test_pencil_value_at_the_temperature_of_the_rollout():
    # [2, 0, 0] / 0.6 = [3.333333, 0, 0]: 3.333333 − log(28.031625 + 2) = −0.068918
    # [0, 0, log 2] / 0.6: 1.155245 − log(3.174802 + 2) = −0.488556
    assert token_logps(LOGITS, IDS, temperature=0.6)[0].tolist() == pytest.approx([-0.068918, -0.488556], abs=1e-6)


def test_pencil_gradient():
    # d log p_y / dz = 1[v = y] − p; p = softmax([2, 0, 0]) = [.786986, .106507, .106507]
    logits = LOGITS.clone().requires_grad_()
    token_logps(logits, IDS)[0, 0].backward()
    assert logits.grad[0, 0].tolist() == pytest.approx([0.213014, -0.106507, -0.106507], abs=1e-6)
    assert logits.grad[0, 1:].abs().max() == 0


def test_entropy_pencil_value():
    # −(.786986 · log .786986 + 2 · .106507 · log .106507) = .188519 + .477054 = .665573;  [1/4, 1/4, 1/2]: 1.5 log 2 = 1.039721
    assert token_entropy(LOGITS)[0].tolist() == pytest.approx([0.665573, 1.039721], abs=1e-6)


def test_entropy_of_a_masked_vocabulary_entry_is_finite():
    logits = torch.tensor([[[0.0, 0.0, -math.inf], [0.0, 0.0, 0.0]]])  # the model rules entry 2 out: H = log 2
    assert token_entropy(logits).item() == pytest.approx(0.693147, abs=1e-6)


def test_bf16_logits_are_upcast_before_the_softmax():
    # 200 tokens, 1,000 entries of logit 0 but the target's: log p = −log 1000 = −6.907755 each, −1381.551 in sum.
    logits, ids = torch.zeros(1, 201, 1000, dtype=torch.bfloat16), torch.zeros(1, 201, dtype=torch.long)
    logps = token_logps(logits, ids)
    assert logps.dtype == torch.float32
    assert sequence_logps(logps, torch.ones(1, 200, dtype=torch.bool)).item() == pytest.approx(-1381.551, abs=1e-2)


def test_sequence_logps_ignores_garbage_in_inactive_positions():
    logps = torch.tensor([[-1.0, math.nan, -2.0], [-math.inf, -0.5, math.nan]], requires_grad=True)
    active = torch.tensor([[True, False, True], [False, True, False]])
    out = sequence_logps(logps, active)
    assert out.tolist() == [-3.0, -0.5]
    out.sum().backward()
    assert logps.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def inputs(bias=False, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 9, 16, generator=g).to(dtype).requires_grad_()
    weight = (0.2 * torch.randn(50, 16, generator=g)).to(dtype).requires_grad_()  # logits of a real size, |z| < 4
    b = torch.randn(50, generator=g).to(dtype).requires_grad_() if bias else None
    ids = torch.randint(0, 50, (3, 9), generator=g)
    active = torch.rand(3, 8, generator=g) < 0.6
    return hidden, weight, b, ids, active


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_plain_in_value_and_gradient(chunk_size, bias, temperature):
    hidden, weight, b, ids, active = inputs(bias)
    g = torch.Generator().manual_seed(1)
    up, up_entropy = torch.randn(3, 8, generator=g), torch.randn(3, 8, generator=g)  # any gradient from above
    parameters = [x for x in (hidden, weight, b) if x is not None]

    logits = torch.nn.functional.linear(hidden, weight, b)
    plain = [
        torch.where(active, f(logits, *a, temperature=temperature), 0.0)
        for f, a in ((token_logps, (ids,)), (token_entropy, ()))
    ]
    expected = torch.autograd.grad((plain[0] * up).sum() + (plain[1] * up_entropy).sum(), parameters)

    logps, entropy = chunked_token_logps(
        hidden, weight, ids, active, head_bias=b, temperature=temperature, chunk_size=chunk_size
    )
    torch.testing.assert_close(logps, plain[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(entropy, plain[1], atol=3e-6, rtol=0)
    assert (logps[~active] == 0).all() and (entropy[~active] == 0).all()
    got = torch.autograd.grad((logps * up).sum() + (entropy * up_entropy).sum(), parameters, retain_graph=True)
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e, atol=2e-6, rtol=1e-6)
    only = torch.autograd.grad((logps * up).sum(), parameters)  # the usual case: entropy is only a metric
    logits = torch.nn.functional.linear(hidden, weight, b)
    plain_only = torch.where(active, token_logps(logits, ids, temperature=temperature), 0.0)
    for a, e in zip(only, torch.autograd.grad((plain_only * up).sum(), parameters), strict=True):
        torch.testing.assert_close(a, e, atol=2e-6, rtol=1e-6)


def test_chunked_gradient_by_finite_differences():
    hidden, weight, b, ids, active = inputs(True, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_token_logps(h, w, ids, active, head_bias=b, temperature=0.8, chunk_size=5),
        (hidden, weight, b),
    )


def test_chunked_never_reads_inactive_positions():
    hidden, weight, _, ids, active = inputs()
    keep = torch.cat([active, torch.zeros(3, 1, dtype=torch.bool)], dim=1)
    poisoned = torch.where(keep[..., None], hidden.detach(), math.nan).requires_grad_()
    logps, _ = chunked_token_logps(poisoned, weight, ids, active)
    assert torch.isfinite(logps).all()
    logps.sum().backward()
    assert torch.isfinite(poisoned.grad).all() and torch.isfinite(weight.grad).all()
    assert (poisoned.grad[~keep] == 0).all()


def test_chunked_with_nothing_active_has_a_graph_and_zero_gradients():
    hidden, weight, _, ids, active = inputs()
    logps, entropy = chunked_token_logps(hidden, weight, ids, torch.zeros_like(active))
    assert logps.abs().max() == 0 and entropy.abs().max() == 0
    logps.sum().backward()
    assert hidden.grad.abs().max() == 0 and weight.grad.abs().max() == 0


def test_chunked_with_a_frozen_head_gives_the_states_their_gradient():
    hidden, weight, _, ids, active = inputs()
    logps, _ = chunked_token_logps(hidden, weight.detach(), ids, active, chunk_size=4)
    logps.sum().backward()
    assert weight.grad is None and hidden.grad.abs().sum() > 0


def test_chunked_under_autocast_computes_the_head_in_bf16_and_the_softmax_in_float32():
    hidden, weight, _, ids, active = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps, _ = chunked_token_logps(hidden, weight, ids, active, chunk_size=4)
        plain = token_logps(torch.nn.functional.linear(hidden, weight), ids)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, torch.where(active, plain, 0.0), atol=1e-5, rtol=0)
    logps.sum().backward()
    assert weight.grad.dtype == torch.float32


def test_purity():
    logits, ids = LOGITS.clone(), IDS.clone()
    token_logps(logits, ids, temperature=0.5), token_entropy(logits)
    assert torch.equal(logits, LOGITS) and torch.equal(ids, IDS)
    hidden, weight, b, ids, active = inputs(True)
    before = [x.detach().clone() for x in (hidden, weight, b, ids, active)]
    chunked_token_logps(hidden, weight, ids, active, head_bias=b, temperature=0.5)[0].sum().backward()
    assert all(torch.equal(a, e) for a, e in zip((hidden, weight, b, ids, active), before, strict=True))


def test_refusals():
    with pytest.raises(AssertionError, match=r"\[B, S, V\]"):
        token_logps(LOGITS[0], IDS)
    with pytest.raises(AssertionError, match="bool"):
        sequence_logps(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="temperature"):
        token_logps(LOGITS, IDS, temperature=0.0)
