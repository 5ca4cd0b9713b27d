"""A prompt that goes through the model once: the same log-probs, losses and gradients as in every row."""

import copy
from dataclasses import replace

import pytest
import torch
from kit import MORE_KINDS, SIZES, model_of_any, tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posttrain.models import CompletionLogps, no_dropout, scalar, sharing, short_rows
from posttrain.tokens.batch import Example, collate
from posttrain.tokens.shared import Sharing

G = torch.Generator().manual_seed(3)


def ids(n):
    return torch.randint(20, 400, (n,), generator=G).tolist()


P, Q, R = ids(7), ids(3), ids(5)
ROWS = [(P, ids(4)), (Q, ids(9)), (P, ids(6)), (R, ids(2)), (P, ids(1)), (Q, ids(5))]
EXAMPLES = [Example.of(*row) for row in ROWS] + [Example.of(*ROWS[1]).muted()]
WINDOWED = {
    "mistral": dict(sliding_window=4),
    "gemma2": dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "qwen2": dict(sliding_window=4, use_sliding_window=True, max_window_layers=1),
}


def batch_of(examples=EXAMPLES):
    always = Sharing(True)
    always.on = True
    return collate(examples, 0, always)


def policy_of(made):
    no_dropout(made)
    policy = CompletionLogps(made.train())
    assert policy.share_prompts() is None
    return policy


def said(policy, batch):
    """log-probs, entropies, gradients of a sum in which every prediction has a weight of its own"""
    policy.zero_grad()
    logps, entropy = policy(batch, 0.9)
    (logps * torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)).sum().backward()
    return (
        logps.detach(),
        entropy.detach(),
        torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]),
    )


def assert_same(policy, batch=None, tolerance=1e-5):
    batch = batch_of() if batch is None else batch
    once, apart = said(policy, batch), said(policy, batch.apart())
    assert apart[0].abs().sum() > 0 and apart[2].abs().max() > 0.1
    for a, b in zip(once[:2], apart[:2], strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-5)
    torch.testing.assert_close(once[2], apart[2], atol=tolerance * apart[2].abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("kind", [*SIZES, *MORE_KINDS])
def test_once_is_apart(kind):
    assert_same(policy_of(model_of_any(kind)))


@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_go_by_positions(kind):
    """Windows of 4 tokens, prompts of up to 7 and answers of up to 9: also where a window begins in the prompt."""
    policy = policy_of(tiny_model(kind, **WINDOWED[kind]))
    assert_same(policy)
    wide = policy_of(tiny_model(kind))  # the same weights: the window is what makes the difference
    assert (said(policy, batch_of())[0] - said(wide, batch_of())[0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_eager_attention(kind):
    made = tiny_model(kind)
    made.set_attn_implementation("eager")
    policy = policy_of(made)
    assert made.config._attn_implementation == "shared_prompts_eager"
    assert_same(policy)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "granite", "mistral"])
def test_short_rows(kind, monkeypatch):
    """As plain products (models/short_rows.py): prompts without a mask, answers behind theirs with one."""
    taken = []
    monkeypatch.setattr(short_rows, "are_short", lambda *shape: taken.append(shape[2:]) or shape[2] > 1)
    made = tiny_model(kind, **WINDOWED.get(kind, {})) if kind in SIZES else model_of_any(kind)
    short_rows.use(made)
    policy = policy_of(made)
    assert made.config._attn_implementation == "shared_prompts_sdpa_unless_short"
    assert_same(policy)
    assert {(12, 12), (9, 12 + 9)} <= set(taken)  # the muted row, all prompt; the longest answer


def test_gradient_checkpointing():
    policy = policy_of(tiny_model("llama"))
    plain = said(policy, batch_of())
    for reentrant in (False, True):
        policy.model.activation_checkpointing_enable({"use_reentrant": reentrant})
        policy.model.enable_input_require_grads()
        for a, b in zip(said(policy, batch_of()), plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_bf16():
    policy, batch = policy_of(tiny_model("qwen2")), batch_of()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        once, apart = policy(batch)[0], policy(batch.apart())[0]
    assert once.sum().item() == pytest.approx(apart.sum().item(), rel=0.01)


def test_an_answer_sees_no_other():
    policy, (first, second, *rest) = policy_of(tiny_model("llama")), EXAMPLES
    edited = Example([*first.input_ids[:-2], 21, 22], first.completion_mask)
    before, after = (policy(batch_of([head, second, *rest]))[0] for head in (first, edited))
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


def test_a_prompt_gets_its_gradient_from_every_answer():
    policy = policy_of(tiny_model("llama"))
    pair = [Example.of(P, ROWS[0][1]), Example.of(P, ROWS[2][1])]
    whole = said_sum(policy, batch_of(pair))
    parts = [said_sum(policy, batch_of([example])) for example in pair]
    torch.testing.assert_close(whole, parts[0] + parts[1], atol=1e-5, rtol=1e-4)


def said_sum(policy, batch):
    policy.zero_grad()
    policy(batch)[0].sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_a_batch_of_muted_rows_is_all_prompt():
    """All answers cut off and left out, or a process that has run out of rows."""
    policy, batch = policy_of(tiny_model()), batch_of([example.muted() for example in EXAMPLES])
    assert batch.shared is not None and batch.shared.answers.shape[1] == 0
    logps, entropy = policy(batch)
    (logps.sum() + entropy.sum()).backward()
    assert not logps.any() and not entropy.any()
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())


def test_scores_of_a_reward_model():
    scorer = scalar.CompletionScores(scalar.as_scorer(tiny_model("llama")))
    torch.nn.init.normal_(scorer.head.weight)
    assert scorer.share_prompts() is None
    batch = batch_of()
    torch.testing.assert_close(scorer(batch), scorer(batch.apart()), atol=1e-5, rtol=1e-5)
    assert scorer(batch).std() > 0.1


def test_the_model_is_as_before_for_everyone_else(tmp_path):
    """Sampling, padding and a mask of one's own go through the attention it had; nothing of it is saved."""
    plain, switched = tiny_model("llama"), tiny_model("llama")
    assert CompletionLogps(switched).share_prompts() is None
    tokens, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ours, theirs = (m(input_ids=tokens, attention_mask=mask).logits[mask.bool()] for m in (switched, plain))
    assert torch.equal(ours, theirs)
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0, attention_mask=mask.flip(1))
    assert torch.equal(switched.generate(tokens.flip(1), **how), plain.generate(tokens.flip(1), **how))
    switched.save_pretrained(tmp_path)
    assert "shared_prompts" not in (tmp_path / "config.json").read_text()


def test_a_module_that_does_not_share_reads_the_rows_apart():
    policy, batch = CompletionLogps(tiny_model("llama")), batch_of()
    assert torch.equal(policy(batch)[0], policy(replace(batch, shared=None))[0])


# ---------------------------------------------------------------- what cannot


def test_an_attention_without_a_mask_of_our_own_is_refused():
    made = tiny_model("llama")
    made.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2' takes no mask of another shape" in sharing.refusal(made)


def test_a_model_that_does_not_pass_on_what_attention_is_told_is_refused(monkeypatch):
    made = tiny_model("llama")
    layer = made.model.layers[0].self_attn
    real = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *a, shared_prompts=None, **k: real(*a, **k))
    policy = CompletionLogps(made)
    assert "does not say the same of an answer whose prompt stands once" in policy.share_prompts()
    assert not policy.shares_prompts and made.config._attn_implementation == "sdpa"


def test_a_recurrent_layer_is_refused():
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING["mamba"](hidden_size=32, num_hidden_layers=2, vocab_size=411, state_size=8))  # fmt: skip
    assert "does not say the same" in sharing.refusal(made)


def test_a_window_that_no_layer_tells_of_is_refused():
    """A probe of seven tokens does not see a window of many."""
    made = tiny_model("mistral", sliding_window=None)
    made.config = copy.deepcopy(made.config)  # the layers keep theirs
    made.config.sliding_window = 100
    assert "without the model's own window" in sharing.refusal(made)
