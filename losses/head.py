"""The head of a language model and the log-probability of one token each, without ever holding the logits [N, V].

    u = W h + b        v = s u        z = c tanh(v / c) / τ        log p(y) = z_y − log Σ_v exp(z_v)

s scales the logits (Granite, Cohere), c caps them softly (Gemma 2); most models have neither. What the backward pass
needs is the gradient of log p(y) at u, and nothing that comes from above changes it:

    J = ∂ log p(y) / ∂u = (1[v = y] − p_v) · (1 − tanh²(v / c)) s / τ              [N, V]
    ∂/∂h = g · J W        ∂/∂W = (g J)ᵀ h        g = what comes from above, one number a prediction

So there are three ways, and all give the same numbers:

    the head is frozen (LoRA)   J W, [N, H], is made in the forward pass: nothing of size V is kept or made again
    J fits `keep_bytes`         J is kept, one tensor, in the type of the weights
    else                        each chunk's logits are made again in the backward pass: one product more, no memory

>>> import torch
>>> h, W = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
>>> logps, entropy = head_logps(h, W, torch.tensor([0]))         # u = [1, 2, 0]: log p(0) = 1 − log(e + e² + 1)
>>> round(logps.item(), 6), round(entropy.item(), 6)
(-1.407606, 0.832396)
>>> logps.sum().backward()                                         # p = [.244729, .665241, .090031]: W_0 − p W
>>> [round(x, 6) for x in h.grad[0].tolist()]
[0.755271, -0.665241]
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from losses.door import at_least_float32


class _Form(NamedTuple):
    """What happens between W h + b and the softmax."""

    temperature: float
    scale: float
    softcap: float | None


def head_logps(
    states: Tensor,  # [N, H] the hidden states that predict something
    head_weight: Tensor,  # [V, H]
    targets: Tensor,  # [N] the token that each is to predict
    *,
    head_bias: Tensor | None = None,  # [V]
    temperature: float = 1.0,
    scale: float = 1.0,  # logits are multiplied by it
    softcap: float | None = None,  # and stay within ± this
    chunk_size: int = 1024,  # predictions whose logits are held at once
    keep_bytes: int = 0,  # memory that a trained head may take to spare the backward pass one product
) -> tuple[Tensor, Tensor]:
    """(log-prob of the target, entropy of the prediction): two [N], float32 (float64 where the states are)."""
    if torch.is_autocast_enabled(states.device.type):  # what F.linear would do; inside a Function it must be said
        compute = torch.get_autocast_dtype(states.device.type)
        states, head_weight = states.to(compute), head_weight.to(compute)
        head_bias = None if head_bias is None else head_bias.to(compute)
    form = _Form(temperature, scale, softcap)
    return _Head.apply(states, head_weight, head_bias, targets, form, chunk_size, keep_bytes)


class _Head(torch.autograd.Function):
    """torch.utils.checkpoint would read more simply, but leaves one [V, H] weight gradient per chunk waiting to be
    added: no memory saved. Measured."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,  # [N, H]
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [N]
        form: _Form,
        chunk_size: int,
        keep_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)  # entropy is usually a metric: its gradient is then None, and costs nothing
        of_states, of_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        whole = len(states) * weight.shape[0] * weight.element_size()
        keep_jw, keep_j = of_states and not of_head, of_head and whole <= keep_bytes
        kept = None
        if keep_jw or keep_j:
            kept = torch.empty_like(states) if keep_jw else weight.new_empty(len(states), weight.shape[0])
        logps, entropy, start = [], [], 0
        for h, y in zip(states.split(chunk_size), targets.split(chunk_size), strict=True):
            rows = slice(start, start := start + len(y))
            log_p, v = _log_probs(h, weight, bias, form)
            logps.append(log_p.gather(-1, y[:, None]).squeeze(-1))
            p, of_p = _entropy(log_p)
            entropy.append(of_p)
            if kept is not None:
                j = _jacobian(p, v, y, form)
                if keep_jw:
                    torch.mm(j.to(weight.dtype), weight, out=kept[rows])
                else:
                    kept[rows] = j
        ctx.save_for_backward(states, weight, bias, targets, kept)
        ctx.form, ctx.chunk_size, ctx.keeps_jw = form, chunk_size, keep_jw
        return torch.cat(logps), torch.cat(entropy)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, kept = ctx.saved_tensors
        if grad_entropy is not None:
            kept = None  # the entropy has a gradient of its own at u: from the logits
        elif grad_logps is None:
            return (None,) * 7
        elif ctx.keeps_jw:
            return (kept * grad_logps[:, None].to(kept.dtype), *(None,) * 6)
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        grad_weight = at_least_float32(torch.zeros_like(weight)) if ctx.needs_input_grad[1] else None
        grad_bias = at_least_float32(torch.zeros_like(bias)) if ctx.needs_input_grad[2] else None
        start = 0
        for h, y in zip(states.split(ctx.chunk_size), targets.split(ctx.chunk_size), strict=True):
            rows = slice(start, start := start + len(y))
            g = h.new_zeros(len(y), dtype=torch.float32) if grad_logps is None else grad_logps[rows]
            if kept is not None:
                grad = kept[rows] * g[:, None].to(kept.dtype)
            else:
                log_p, v = _log_probs(h, weight, bias, ctx.form)
                p, entropy = _entropy(log_p)
                at_entropy = None
                if grad_entropy is not None:  # d entropy / dz = −p_v (log p_v + entropy)
                    at_entropy = -p * (log_p + entropy[:, None]) * grad_entropy[rows, None]
                grad = _jacobian(p, v, y, ctx.form, g, at_entropy).to(weight.dtype)
            if grad_states is not None:
                torch.mm(grad, weight, out=grad_states[rows])
            if grad_weight is not None:
                grad_weight += grad.T @ h
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_states, grad_weight, grad_bias, None, None, None, None


def _log_probs(h: Tensor, weight: Tensor, bias: Tensor | None, form: _Form) -> tuple[Tensor, Tensor | None]:
    """[n, H] -> (log-probs [n, V], what was capped: c tanh(v / c)). Scaled and capped in the type of the weights, as
    models do it."""
    u = linear(h, weight, bias)
    if form.scale != 1:
        u = u * form.scale
    if form.softcap is not None:
        u = (u / form.softcap).tanh_() * form.softcap
    z = at_least_float32(u)
    log_p = torch.log_softmax(z if form.temperature == 1 else z / form.temperature, dim=-1)
    return log_p, None if form.softcap is None else u


def _jacobian(
    p: Tensor,  # [n, V], overwritten
    logits: Tensor | None,  # where they are capped
    y: Tensor,
    form: _Form,
    g: Tensor | None = None,  # [n] what comes from above; None: 1
    more: Tensor | None = None,  # [n, V] a gradient at z that is added to it
) -> Tensor:
    """g · ∂ log p(y) / ∂u"""
    ones = torch.ones_like(p[:, :1]) if g is None else g[:, None].to(p.dtype)
    j = p.mul_(-ones).scatter_add_(-1, y[:, None], ones)
    if more is not None:
        j += more
    if logits is not None:
        assert form.softcap is not None
        j *= 1 - (at_least_float32(logits) / form.softcap).square_()
    slope = form.scale / form.temperature
    return j if slope == 1 else j.mul_(slope)


def entropy_of(log_p: Tensor) -> Tensor:
    """−Σ_v p log p of log-probabilities [..., V]: [...]"""
    # A vocabulary entry that a model masks out has log p = −inf and p = 0; 0 · (−inf) would be NaN, the limit is 0.
    log_p = log_p.clamp_min(torch.finfo(log_p.dtype).min)
    return -torch.linalg.vecdot(log_p.exp(), log_p)


def _entropy(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """(p [n, V], entropy [n]): the same in place, without a copy of the chunk."""
    p = log_p.clamp_min_(torch.finfo(log_p.dtype).min).exp()
    return p, -torch.linalg.vecdot(p, log_p)
