"""The work of a step is counted as torch counts it, and by hand; nothing that a config adds or saves is forgotten."""

from dataclasses import replace

import pytest
import torch
from kit import llama_shape, tiny_model, yaml_config
from torch.utils.flop_counter import FlopCounterMode

from posttrain import models
from posttrain.models import duration, memory
from posttrain.models.duration import Cost, Fit, Laid, Network, Row, laid_out
from posttrain.models.rates import Rates
from posttrain.tokens.batch import Example, collate
from posttrain.tokens.shared import Sharing

SHAPE = llama_shape()


def test_flops_are_those_that_torch_counts():
    """Two rows of 50 tokens, half of each learned: 100 tokens, 2 x 50 x 50 = 5,000 pairs, 50 predictions. Torch does not
    know a CPU's fused attention; the one it counts keeps its weights, and saves a product in five of the backward pass."""
    model = tiny_model("llama", 500, attn_implementation="eager")
    assert memory.shape_of(model.config) == SHAPE
    policy = models.CompletionLogps(model.train())
    policy.keep_bytes = 2**20
    batch = collate([Example.of(list(range(3, 28)), list(range(30, 55)))] * 2, 0)
    net = Network(SHAPE, 4)
    with FlopCounterMode(display=False) as forward:
        logps, _ = policy(batch)
    with FlopCounterMode(display=False) as backward:
        logps.sum().backward()
    # 2 x 100 x 20,480 = 4,096,000; attention 4 x 2 layers x 32 x 5,000 = 1,280,000
    of_forward = net.forward(Laid(100, 5000)).flops
    assert of_forward == 4_096_000 + 1_280_000
    # twice 4,096,000; attention 2.5 x 1,280,000
    of_backward = net.backward(Laid(100, 5000)).flops
    assert of_backward == 8_192_000 + 3_200_000
    # 3 x 2 x 50 x 32 x 500 = 4,800,000: a third of it forward
    of_head = net.head(50, keep_bytes=2**20).flops
    assert of_head == 4_800_000
    assert forward.get_total_flops() == of_forward + 1_600_000
    assert backward.get_total_flops() == of_backward - 3_200_000 // 5 + 3_200_000


def test_flops_of_an_adapter_and_of_a_prompt_read_once():
    """Rank 8 on all seven: 8 x (4 x 64 + 3 x 96) = 4,352 a layer. The frozen weights get no gradient; nor does what the
    first layer reads, which three of its products would have to give: 2 x tokens x (3 x 32 x 32 + 3 x 32 x 8) less."""
    from posttrain.models import lora

    model = tiny_model("llama", 500, attn_implementation="eager")
    config = yaml_config("dpo_tiny")  # rank 8
    shape = memory.shape_of(model.config, config.model.lora)
    assert shape.adapter == 2 * 4352
    policy, sharing = models.CompletionLogps(lora.add(model, config.model.lora, "x").train()), Sharing(True)
    sharing.on = policy.share_prompts() is None
    prompt = list(range(3, 43))
    batch = collate([Example.of(prompt, list(range(50, 60))), Example.of(prompt, list(range(60, 70)))], 0, sharing)
    laid = laid_out([Row(50, 10, 40), Row(50, 10, 40)], True)
    # 40 + 2 x 10 tokens; 40 x 40, and 2 x 10 that look at 50
    assert laid == Laid(60, 2600)
    net = Network(shape, 4, trained=False)
    with FlopCounterMode(display=False) as counter:
        logps, _ = policy(batch)
        logps.sum().backward()
    # forward 2 x 60 x 29,184 + 8 x 32 x 2,600; backward 2 x 60 x (29,184 + 8,704) + 20 x 32 x 2,600
    assert net.forward(laid).flops == 3_502_080 + 665_600
    assert net.backward(laid).flops == 4_546_560 + 1_664_000
    assert net.head(20).flops == 4 * 20 * 16_000
    counted = net.forward(laid).flops + net.backward(laid).flops + net.head(20).flops
    first = 2 * 60 * (3 * 32 * 32 + 3 * 32 * 8)
    assert counter.get_total_flops() == counted - first - 1_664_000 // 5


def test_padding_and_sharing():
    assert laid_out([Row(10, 2), Row(6, 2)]) == Laid(20, 200)
    far = [Row(10, 2, 8, group=1), Row(10, 2, 8, group=2)]
    assert laid_out(far, True) == Laid(20, 2 * 64 + 2 * 2 * 10)
    assert laid_out(far, "auto") == Laid(20, 200)  # saves nothing
    assert laid_out([Row(10, 2, 8), Row(10, 2, 8)], "auto") == Laid(12, 64 + 40)
    assert laid_out([Row(10, 9, 0), Row(10, 9, 0)], True) == Laid(20, 200)  # no prompt to share


RATES = Rates(products=1e6, narrow=1e4, few=1e3, attention=1e2, moved=1e6, softmax=1e1, start=0.5)


def test_seconds():
    """Each over its own rate; 4 operations of half a second."""
    one, fits = Cost(3, 7, 2, 1, 5, 6, 4), (duration.TRAINING[2], duration.SAMPLING[2])
    work = 3e-6 + 7e-4 + 2e-3 + 1e-2 + 5e-6 + 6e-1
    assert one.seconds(RATES, Fit()) == pytest.approx(work + 2)
    assert one.seconds(RATES, Fit(work=10, start=3)) == pytest.approx(10 * work + 6)
    assert one + Cost(1, 1, 1, 1, 1, 1, 1) * 2 == Cost(5, 9, 4, 3, 7, 8, 6) and one.flops == 13
    spent = duration.seconds({"forward": one, "sampling": one}, RATES, 2)
    assert list(spent.values()) == [one.seconds(RATES, fit) for fit in fits] and fits[0] != fits[1]
    assert Cost(3).seconds(replace(RATES, few=0.0), Fit()) == 3e-6  # nothing was sampled, and that rate not asked for


TWO_ROWS = ((Row(50, 25, 25), Row(50, 25, 25)),)


def of_step(method, window=TWO_ROWS, **changes):
    config = yaml_config(f"{method}_tiny", model__name="x", **changes)
    return duration.of_step(config, SHAPE, [list(micro) for micro in window], 4)


def test_what_each_method_adds():
    """All in multiples of a forward pass over the same rows: 5,376,000, and its head alone: 2 x 50 x 16,000."""
    look = 5_376_000 + 1_600_000
    plain = {"forward": 5_376_000, "backward": 11_392_000, "head": 4_800_000, "optimiser": 0}

    def flops(method, **changes):
        return {name: cost.flops for name, cost in of_step(method, model__adapter="none", **changes).items()}

    assert flops("sft") == plain
    no_sharing = {"training__share_prompts": False}
    assert flops("dpo", dpo__precompute=False, **no_sharing) == plain | {"reference": look}
    assert flops("dpo", dpo__precompute=True, **no_sharing) == plain
    assert "head" not in flops("reward", **no_sharing)
    grpo = no_sharing | {"grpo__minibatches": 1, "grpo__inner_epochs": 1, "grpo__kl_coef": 0.0}
    assert flops("grpo", **grpo) == plain
    assert flops("grpo", **grpo | {"grpo__kl_coef": 0.1}) == plain | {"reference": look}
    several = grpo | {"grpo__inner_epochs": 2}  # one look at the old policy for two steps over the same rows
    assert flops("grpo", **several) == plain | {"old log-probs": look / 2}
    ppo = flops("ppo", ppo__inner_epochs=2, ppo__kl_coef=0.1, ppo__critic="separate")
    # a critic: forward and backward, and half a look, all without a head
    assert ppo == plain | {"old log-probs": look / 2, "reference": look / 2, "critic": 5_376_000 * 1.5 + 11_392_000}
    assert "critic" not in flops("ppo", ppo__critic="shared")
    checkpointed = flops("sft", model__gradient_checkpointing=True)
    assert checkpointed["backward"] == 11_392_000 + 5_376_000
    assert flops("sft", training__logit_budget_mb=0)["head"] == 8 * 50 * 16_000


def test_the_optimiser_is_bytes():
    """40 bytes a parameter; 12 more for each micro-batch after the first."""
    one = of_step("sft", model__adapter="none")["optimiser"]
    two = of_step("sft", window=((Row(50, 25),), (Row(50, 25),)), model__adapter="none")["optimiser"]
    assert one == Cost(moved=52_640 * 40) and two == Cost(moved=52_640 * 52)
    assert Network(SHAPE, 4).cast() == Cost() and Network(SHAPE, 2).cast().moved == 52_640 * 12  # to 16 bits and back
    assert Network(SHAPE, 2, trained=False).cast() == Cost()


def test_a_rollout():
    """3 prompts of 10 tokens, 2 answers each of 5: prefill of 30 tokens, then four steps of 6 rows; the cache holds
    10 + 1 … 10 + 4 tokens, 6 x 4 x 12.5 = 300 over all."""
    config = yaml_config("grpo_tiny", model__name="x", grpo__group_size=2, grpo__minibatches=1, grpo__inner_epochs=1)
    cost = duration.of_rollout(config, SHAPE, [10, 10, 10], 5, 4)
    assert cost.few == 2 * 4 * 6 * (20_480 + 16_000)
    assert cost.products == 2 * 30 * 20_480
    assert cost.attention == 4 * 2 * 32 * 300 * 2  # and the prompts compare 3 x 10 x 10 = 300
    twice = yaml_config("grpo_tiny", model__name="x", grpo__group_size=2, grpo__minibatches=1, grpo__inner_epochs=2)
    assert duration.of_rollout(twice, SHAPE, [10, 10, 10], 5, 4) == cost * 0.5  # one rollout for two steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_product_is_what_torch_moves(dtype):
    from benchmarks.block import of_a_layer

    found = of_a_layer(64, 192, dtype, adapted=False)
    for (hidden, wide, _, calls, _), (moved, counted) in zip(duration.BLOCK[dtype.itemsize], found, strict=True):
        assert hidden * 64 + wide * 192 == pytest.approx(moved, rel=0.05) and calls == counted


def test_a_reference_without_the_fresh_adapter():
    """10 parameters of it for each of 100 tokens: 2,000 FLOP more in the policy's own pass."""
    config = yaml_config("dpo_tiny", model__name="x", dpo__precompute=False, training__share_prompts=False)
    window, adapted = [list(TWO_ROWS[0])], replace(SHAPE, adapter=10, rank=5)

    def narrow(**changes):
        model = config.model.model_copy(update=changes)
        parts = duration.of_step(config.model_copy(update={"model": model}), adapted, window, 4)
        return parts["forward"].narrow, parts["reference"].narrow

    assert config.model.adapter == "lora" and narrow() == (2000, 0)
    assert narrow(reference="copy") == narrow(adapter_path="x") == (2000, 2000)
