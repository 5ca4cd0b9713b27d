"""Rows that come and go say what they would have said alone: beside the training sampler, which is another path."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from kit import tiny_model
from transformers.cache_utils import DynamicLayer

from posttrain.errors import UserError
from posttrain.rollouts.sampling import draw_uniforms, sample
from posttrain.serving.running import Running, refuse_other_caches

LONGEST, STOPS = 14, [2, 3, 4, *range(20, 40)]


def written(model, prompts, arrivals, temperatures, uniforms):
    """Each prompt joins at its step; a row leaves when it has said a stop token or LONGEST tokens. -> ids, logps."""
    running, rows, ids, logps = Running(model, 0), [], [[] for _ in prompts], [[] for _ in prompts]
    for step in range(200):
        new = [i for i, at in enumerate(arrivals) if at == step]
        if new:
            running.join(running.read([prompts[i] for i in new], [1] * len(new)))
            rows += new
        if not rows:
            continue
        said = running.sample(
            [temperatures[i] for i in rows], [float(uniforms[i, len(ids[i])]) for i in rows], [0] * len(rows)
        )
        staying = []
        for place, i in enumerate(rows):
            ids[i].append(said.tokens[place])
            logps[i].append(said.logps[place])
            if said.tokens[place] not in STOPS and len(ids[i]) < LONGEST:
                staying.append(place)
        running.go_on(staying, [said.tokens[place] for place in staying])
        rows = [rows[place] for place in staying]
        assert len(running) == len(rows)
    return ids, logps


def alone(model, prompt, temperature, uniforms):
    rollout = sample(
        model, [prompt], max_new_tokens=LONGEST, stop_ids=STOPS, pad_id=0, temperature=temperature, uniforms=uniforms[None]
    )  # fmt: skip
    return rollout.completion_ids[0], rollout.logps[0]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def beside(model, seed):
    """Twelve prompts that come at other times: (ids, logps) of each beside the others, and alone."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(5, 60) for _ in range(rng.choice([1, 2, 5, 9, 23]))] for _ in range(12)]
    arrivals = [rng.randrange(25) for _ in prompts]
    temperatures = [rng.choice([0.0, 0.7, 1.0]) for _ in prompts]
    uniforms = draw_uniforms(len(prompts), LONGEST, seed=seed, step=0)
    together = written(model, prompts, arrivals, temperatures, uniforms)
    each = [alone(model, prompt, t, u) for prompt, t, u in zip(prompts, temperatures, uniforms, strict=True)]
    return together, ([ids for ids, _ in each], [logps.tolist() for _, logps in each])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2"])
def test_a_row_says_what_it_says_alone(kind, seed):
    (ids, logps), (ids_alone, logps_alone) = beside(tiny_model(kind).eval(), seed)
    assert ids == ids_alone
    assert flat(logps) == pytest.approx(flat(logps_alone), abs=2e-5)
    assert len(set(map(len, ids))) > 2, "rows are to end at different times, or nothing is tried"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_with_a_sliding_window(kind, seed):
    """Of 8 tokens, on every other layer or on all of them; prompts are up to 23 tokens long."""
    (ids, logps), (ids_alone, logps_alone) = beside(tiny_model(kind, sliding_window=8).eval(), seed)
    assert ids == ids_alone
    assert flat(logps) == pytest.approx(flat(logps_alone), abs=2e-5)


def test_one_prompt_several_rows():
    """Read once: the rows are those of a prompt that is given several times."""
    m = tiny_model().eval()
    once, thrice = Running(m, 0), Running(m, 0)
    once.join(once.read([[7, 8, 9], [5]], [3, 1]))
    thrice.join(thrice.read([[7, 8, 9]] * 3 + [[5]], [1] * 4))
    torch.testing.assert_close(once.logits, thrice.logits, atol=1e-5, rtol=0)
    assert once.mask.tolist() == thrice.mask.tolist() == [[True] * 3] * 3 + [[False, False, True]]


def test_the_width_is_that_of_the_longest_row():
    running = Running(tiny_model().eval(), 0)
    running.join(running.read([[5] * 40, [6] * 3], [1, 1]))
    running.go_on([0, 1], [7, 7])
    assert running.mask.shape == (2, 41)
    running.go_on([1], [7])  # the long one leaves: 3 tokens of the prompt and two that were said
    assert running.mask.shape == (1, 5) and running.cache.layers[0].keys.shape[2] == 5 and running.position.item() == 5
    running.go_on([], [])
    assert len(running) == 0 and running.cache is None


def test_the_likeliest_tokens():
    running = Running(tiny_model().eval(), 0)
    running.join(running.read([[5, 6]], [2]))
    said = running.sample([0.0, 0.5], [0.0, 0.3], [3, 0])
    logps = torch.log_softmax(running.logits[0], -1)
    values, ids = logps.topk(3)
    assert [i for i, _ in said.likeliest[0]] == ids.tolist() and said.likeliest[1] == []
    assert [v for _, v in said.likeliest[0]] == pytest.approx(values.tolist())
    assert said.tokens[0] == ids[0] and said.logps[0] == pytest.approx(values[0].item())
    halved = torch.log_softmax(running.logits[1] / 0.5, -1)
    assert said.logps[1] == pytest.approx(halved[said.tokens[1]].item(), abs=1e-6)


def test_a_cache_of_another_kind_is_refused():
    class Other(DynamicLayer):
        pass

    m = tiny_model().eval()
    with pytest.raises(UserError, match="keeps what it has read in a Other"):
        refuse_other_caches(m, SimpleNamespace(layers=[DynamicLayer(), Other()]))
