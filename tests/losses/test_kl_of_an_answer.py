"""Two tokens, three actions each, all nine answers enumerated, nothing sampled: the KL in the loss has one gradient, the
KL in the reward another, and only the second is that of KL(π(y|x)‖π_ref(y|x)), the KL of the whole answer.

The pencil example. The first token is a, b or c; only after b do policy and reference disagree on the second:

    first token      π [½, ¼, ¼]        π_ref [¼, ½, ¼]        KL₁ = ½ ln 2 − ¼ ln 2 + 0 = .25 ln 2
    second after a   π = π_ref                                 KL 0
    second after b   π [.8, .1, .1]     π_ref [.1, .1, .8]     KL .8 ln 8 + 0 − .1 ln 8 = .7 ln 8 = 2.1 ln 2
    second after c   π = π_ref                                 KL 0
    the answer       KL = .25 ln 2 + ¼ · 2.1 ln 2 = .775 ln 2 = .537189

∂KL/∂θ_i = π_i (c_i − Σ π c), with c_i what choosing i costs: its own log(π_i / π_ref,i) in the loss, and in the answer
what follows it, too: [ln 2, −ln 2, 0] and [ln 2, −ln 2 + 2.1 ln 2, 0]."""

import pytest
import torch

from losses.gae import gae, kl_shaped_rewards
from losses.grpo import grpo_loss
from losses.kl import exact_kl, k3_is
from losses.ppo import ppo_policy_loss

A = [0.5, 0.25, 0.25]
FIRST, FIRST_REF = torch.tensor(A).double().log(), torch.tensor([0.25, 0.5, 0.25]).double().log()
SECOND = torch.tensor([A, [0.8, 0.1, 0.1], A]).double().log()
SECOND_REF = torch.tensor([A, [0.1, 0.1, 0.8], A]).double().log()

IN_THE_ANSWER = [0.077979, 0.056318, -0.134297]  # ln 2 · [½ (1 − .775), ¼ (1.1 − .775), ¼ (0 − .775)]
IN_THE_LOSS = [0.259930, -0.216608, -0.043322]  # ln 2 · [½ (1 − .25), ¼ (−1 − .25), ¼ (0 − .25)]
SECOND_AFTER_B = [0.124766, -0.036390, -0.088376]  # ¼ ln 8 · [.8 (1 − .7), .1 (0 − .7), .1 (−1 − .7)], both ways
ONES, NOTHING = torch.ones(9, 2).double(), torch.zeros(9).double()
ALL = torch.ones(9, 2, dtype=torch.bool)


def answers(first, second):
    """Logits [3] and [3, 3] -> log-probs [9, 2] of all nine answers; row 3i + j says i, then j."""
    a, b = first.log_softmax(-1), second.log_softmax(-1)
    return torch.stack([a.repeat_interleave(3), b.flatten()], dim=1)


def gradients(loss, first=FIRST, second=SECOND, old=None):
    """Of Σ π_old(y) · loss(log-probs of y), the expectation over answers that were sampled, for both tokens' logits."""
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    logps = answers(first, second)
    weights = (logps.detach() if old is None else old).sum(1).exp()  # [9] π_old(y)
    return torch.autograd.grad(loss(logps, weights[:, None] * ONES), (first, second))


def kl_of_the_answer(ref):
    """Σ_y π(y) (log π(y) − log π_ref(y)), by definition; its gradient goes through π(y) as well."""
    return lambda logps, _: (logps.sum(1).exp() * (logps - ref).sum(1)).sum()


def in_the_loss(ref, estimator="k3_is"):
    """As loops/grpo.py has it: the advantage is 0, the KL alone pulls."""
    return lambda logps, w: grpo_loss(
        logps, logps.detach(), NOTHING, w, ref_logps=ref, kl_coef=1.0, kl_estimator=estimator
    )[0]


def in_the_reward(ref, values=None, lam=1.0, gamma=1.0):
    """As loops/ppo.py has it: the score is 0, every token pays its k1, and a token is credited with what follows."""

    def loss(logps, w):
        rewards = kl_shaped_rewards(NOTHING, logps.detach(), ref, ALL, 1.0)
        advantages, _ = gae(rewards, 0 * ONES if values is None else values, ALL, gamma=gamma, lam=lam)
        return ppo_policy_loss(logps, logps.detach(), advantages, w)[0]

    return loss


REF = answers(FIRST_REF, SECOND_REF)


def test_the_pencil_example():
    kl = kl_of_the_answer(REF)(answers(FIRST, SECOND), None).item()
    assert kl == pytest.approx(0.537189, abs=1e-6)  # .775 · .693147
    of_answer = gradients(kl_of_the_answer(REF))
    assert of_answer[0].tolist() == pytest.approx(IN_THE_ANSWER, abs=1e-6)
    assert of_answer[1].tolist() == [pytest.approx(row, abs=1e-6) for row in ([0] * 3, SECOND_AFTER_B, [0] * 3)]


def test_in_the_loss_it_is_the_kl_of_each_token_where_it_was_sampled():
    """Token b is rarer than the reference has it: the loss makes it likelier, though all that follows b costs more."""
    first, second = gradients(in_the_loss(REF))
    assert first.tolist() == pytest.approx(IN_THE_LOSS, abs=1e-6)
    assert second.tolist() == [pytest.approx(row, abs=1e-6) for row in ([0] * 3, SECOND_AFTER_B, [0] * 3)]
    # the same by definition: Σ π(visited, frozen) · KL(π(·|visited)‖π_ref(·|visited))
    visited = FIRST.exp()

    def of_each_state(logps, _):
        firsts = exact_kl(logps[::3, 0][None, None], FIRST_REF[None, None]).sum()
        return firsts + (visited * exact_kl(logps[:, 1].view(1, 3, 3), SECOND_REF[None])[0]).sum()

    assert gradients(of_each_state)[0].tolist() == pytest.approx(IN_THE_LOSS, abs=1e-6)
    assert gradients(of_each_state)[1].tolist() == [pytest.approx(row, abs=1e-9) for row in second.tolist()]


def test_in_the_reward_it_is_the_kl_of_the_answer():
    first, second = gradients(in_the_reward(REF))
    assert first.tolist() == pytest.approx(IN_THE_ANSWER, abs=1e-6)
    assert second.tolist() == [pytest.approx(row, abs=1e-6) for row in ([0] * 3, SECOND_AFTER_B, [0] * 3)]


def test_a_perfect_critic_changes_no_gradient_whatever_lambda():
    # before the first token −KL = −.537189 is to come; after b, −2.1 ln 2 = −1.455609; after a and c nothing
    values = torch.tensor(
        [[-0.5371890649, 0.0]] * 3 + [[-0.5371890649, -1.4556090792]] * 3 + [[-0.5371890649, 0.0]] * 3
    )
    for lam in (0.0, 0.5, 1.0):
        first, _ = gradients(in_the_reward(REF, values.double(), lam))
        assert first.tolist() == pytest.approx(IN_THE_ANSWER, abs=1e-6), lam


@pytest.mark.parametrize("blind", [{"lam": 0.0}, {"gamma": 0.0}])
def test_in_the_reward_without_looking_ahead_it_is_that_of_the_loss(blind):
    """On policy ρ·k3 pushes a token by its own k1: the reward-to-go cut off after one token, be it by γ or by λ."""
    assert gradients(in_the_reward(REF, **blind))[0].tolist() == pytest.approx(IN_THE_LOSS, abs=1e-6)
    policy = answers(FIRST, SECOND).requires_grad_()
    k3_is(policy, REF, policy.detach()).sum().backward()
    torch.testing.assert_close(policy.grad, (policy - REF).detach())  # sample by sample


def test_of_one_token_all_are_equal():
    """No second token to look ahead to: it is the same whatever comes first."""
    first = [0.259930, -0.216608, -0.043322]
    for loss in (kl_of_the_answer, in_the_loss, in_the_reward):
        same = answers(FIRST_REF, SECOND)  # the reference says the same second token
        assert gradients(loss(same))[0].tolist() == pytest.approx(first, abs=1e-6)


def test_k2_and_k3_are_per_token_as_well():
    k2 = gradients(in_the_loss(REF, "k2"))[0]
    assert k2.tolist() == pytest.approx(IN_THE_LOSS, abs=1e-6)
    # k3: the other direction, at the visited states: π − π_ref for the first token
    assert gradients(in_the_loss(REF, "k3"))[0].tolist() == pytest.approx([0.25, -0.25, 0.0], abs=1e-6)
    # after b: ¼ (π − π_ref) = ¼ [.7, 0, −.7]
    assert gradients(in_the_loss(REF, "k3"))[1][1].tolist() == pytest.approx([0.175, 0.0, -0.175], abs=1e-6)


def test_off_policy_the_ratio_corrects_the_token_not_its_prefix():
    """Sampled by an older policy, which said b half of the time: .25 ln 2 + ½ · 2.1 ln 2 = .901091, not .537189."""
    old = answers(torch.tensor([0.25, 0.5, 0.25]).double().log(), torch.tensor([[1 / 3] * 3] * 3).double().log())
    now = answers(FIRST, SECOND)
    assert (old.sum(1).exp()[:, None] * k3_is(now, REF, old)).sum().item() == pytest.approx(0.901091, abs=1e-6)
    _, second = gradients(lambda logps, w: grpo_loss(logps, old, NOTHING, w, ref_logps=REF, kl_coef=1.0)[0], old=old)
    # as often as b was sampled, ½ instead of ¼: twice SECOND_AFTER_B
    assert second[1].tolist() == pytest.approx([0.249533, -0.072780, -0.176753], abs=1e-6)


# seed: cosine of the first token's gradients, in the loss and of the answer
COSINES = {
    0: 0.9959,
    1: 0.1710,
    2: 0.9987,
    3: 0.9845,
    4: 0.9955,
    5: 0.8543,
    6: 0.9997,
    7: 0.9997,
    8: -0.3381,
    9: 0.9719,
}


@pytest.mark.parametrize("seed", COSINES)
def test_random_policies(seed):
    """The last token's gradient is always the answer's; the first token's may even point away from it."""
    torch.manual_seed(seed)
    first, second, first_ref = (torch.randn(*shape, dtype=torch.float64) for shape in ((3,), (3, 3), (3,)))
    ref = answers(first_ref, 2 * torch.randn(3, 3, dtype=torch.float64))
    true, loss, reward = (gradients(f(ref), first, second) for f in (kl_of_the_answer, in_the_loss, in_the_reward))
    torch.testing.assert_close(loss[1], true[1])
    torch.testing.assert_close(reward, true)
    assert torch.cosine_similarity(loss[0], true[0], dim=0).item() == pytest.approx(COSINES[seed], abs=1e-4)
    if seed == 0:
        assert true[0].tolist() == pytest.approx([0.316, -0.249, -0.067], abs=1e-3)
        assert loss[0].tolist() == pytest.approx([0.493, -0.433, -0.060], abs=1e-3)
