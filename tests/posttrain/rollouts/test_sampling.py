import pytest
import torch
from kit import tiny_model

from posttrain.models import CompletionLogps, no_dropout
from posttrain.rollouts.sampling import draw_uniforms, inverse_transform, sample
from posttrain.tokens.batch import collate

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15], [5, 6]]
STOP = 2


def roll(m, prompts=PROMPTS, group_size=3, max_new_tokens=12, temperature=0.8, step=0, **more):
    uniforms = draw_uniforms(len(prompts) * group_size, max_new_tokens, seed=0, step=step)
    return sample(
        m, prompts, group_size=group_size, max_new_tokens=max_new_tokens, temperature=temperature,
        stop_ids=[STOP, 3, 4, *range(20, 60)], pad_id=0, uniforms=uniforms, **more,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_and_trainer_agree(kind, temperature):
    """The real sampler: mixed prompt lengths (left-padded there, right-padded here), to 1e-4."""
    m = tiny_model(kind)
    no_dropout(m)
    policy = CompletionLogps(m.train())
    rollout = roll(m, temperature=temperature)
    examples = rollout.examples()
    batch = collate(examples, 0)
    logps, _ = policy(batch, temperature)
    for row, theirs in enumerate(rollout.logps):
        torch.testing.assert_close(logps[row][batch.active[row]], theirs, atol=1e-4, rtol=0)
    wrong, _ = policy(batch, 1.7)
    assert (wrong[0][batch.active[0]] - rollout.logps[0]).abs().max() > 1e-2


def test_masks_and_the_sampled_end_token():
    """The stop token that was sampled has mask 1, nothing comes after it, truncated rows are flagged."""
    rollout = roll(tiny_model())
    stops = {STOP, 3, 4, *range(20, 60)}
    assert True in rollout.finished and False in rollout.finished
    for ids, logps, done, example in zip(
        rollout.completion_ids, rollout.logps, rollout.finished, rollout.examples(), strict=True
    ):
        assert len(ids) == len(logps) and (ids[-1] in stops) == done and not set(ids[:-1]) & stops
        assert done or len(ids) == 12
        assert example.completion_mask == [False] * (len(example) - len(ids)) + [True] * len(ids)
        assert example.input_ids[-len(ids) :] == ids  # token in, token out


def test_groups_stand_together():
    rollout = roll(tiny_model())
    assert rollout.prompt_ids == [p for p in PROMPTS for _ in range(3)]


def test_a_rollout_does_not_depend_on_how_it_is_batched():
    m, whole = tiny_model(), roll(tiny_model())
    uniforms = draw_uniforms(12, 12, seed=0, step=0)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(
            m, [prompt], group_size=3, max_new_tokens=12, temperature=0.8, stop_ids=[STOP, 3, 4, *range(20, 60)], pad_id=0,
            uniforms=uniforms[3 * i : 3 * i + 3],
        )  # fmt: skip
        assert alone.completion_ids == whole.completion_ids[3 * i : 3 * i + 3]


@pytest.mark.parametrize("rows", [1, 5, 7, 11])
def test_at_most_so_many_rows_at_once_changes_nothing(rows, monkeypatch):
    m, whole, ended = tiny_model(), roll(tiny_model()), []
    widths, forward = [], m.forward
    monkeypatch.setattr(
        m, "forward", lambda input_ids, **more: widths.append(len(input_ids)) or forward(input_ids, **more)
    )
    parts = roll(m, batch_rows=rows, progress=ended.append)
    assert max(widths) <= rows and ended == sorted(ended) and ended[-1] <= 12
    assert (parts.completion_ids, parts.prompt_ids, parts.finished) == (
        whole.completion_ids,
        whole.prompt_ids,
        whole.finished,
    )
    for ours, theirs in zip(parts.logps, whole.logps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_prompt_that_several_rows_ask_is_read_once(monkeypatch):
    m = tiny_model()
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    apart = [roll(tiny_model(), [p for p in asked])]
    read, forward = [], m.forward
    monkeypatch.setattr(
        m, "forward", lambda input_ids, **more: read.append(tuple(input_ids.shape)) or forward(input_ids, **more)
    )
    together = roll(m, asked)
    assert read[0] == (2, 3) and read[1][0] <= 12  # 2 prompts of at most 3 tokens; 4 of them, 3 answers each
    assert together.completion_ids == apart[0].completion_ids and together.prompt_ids == [
        p for p in asked for _ in range(3)
    ]


def test_greedy_equals_generate_and_does_not_depend_on_the_batch():
    m = tiny_model().eval()
    ours = sample(m, PROMPTS, max_new_tokens=8, temperature=0, stop_ids=[STOP], pad_id=0)
    for prompt, ids in zip(PROMPTS, ours.completion_ids, strict=True):
        theirs = m.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=STOP, pad_token_id=0
        )
        assert theirs[0, len(prompt) :].tolist() == ids
        assert sample(m, [prompt], max_new_tokens=8, temperature=0, stop_ids=[STOP], pad_id=0).completion_ids == [ids]


def test_sampling_leaves_flags_and_random_state_as_they_were():
    m = tiny_model().train()
    m.config.use_cache = False
    before = torch.get_rng_state()
    roll(m)
    assert m.training and m.config.use_cache is False and torch.equal(torch.get_rng_state(), before)
    m.eval()
    roll(m)
    assert not m.training


def test_another_step_draws_other_numbers_and_the_same_step_the_same():
    assert torch.equal(draw_uniforms(4, 5, seed=1, step=2), draw_uniforms(4, 5, seed=1, step=2))
    assert not torch.equal(draw_uniforms(4, 5, seed=1, step=2), draw_uniforms(4, 5, seed=1, step=3))


def test_inverse_transform_pencil_values():
    # cumulative .2, .5, .5, 1: u = .1 -> 0, .2 -> 1 (the first that exceeds u), .49 -> 1, .5 -> 3 (entry 2 has probability 0)
    probs = torch.tensor([[0.2, 0.3, 0.0, 0.5]]).expand(5, 4)
    assert inverse_transform(probs, torch.tensor([0.1, 0.2, 0.49, 0.5, 1 - 2**-24])).tolist() == [0, 1, 1, 3, 3]


def test_an_impossible_last_entry_is_never_drawn():
    probs = torch.softmax(torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)), -1)
    probs[0, -100:] = 0
    assert inverse_transform(probs, torch.tensor([1 - 2**-24])).item() < 49_900


def test_sampled_frequencies_are_the_probabilities():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(20_000, 4)
    drawn = inverse_transform(probs, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    # standard error √(.4 · .6 / 20000) = .0035: four of them
    assert torch.bincount(drawn).div(20_000).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.014)


def test_refusals():
    with pytest.raises(ValueError, match="uniforms"):
        sample(tiny_model(), PROMPTS, max_new_tokens=2, stop_ids=[2], pad_id=0, temperature=1.0)
