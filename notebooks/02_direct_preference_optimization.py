# %% [markdown]
# # 2 · Direct preference optimisation
#
# From "people prefer this answer" to a gradient, without a reward model and without sampling (Rafailov et al. 2023).
# Then the embedded model changes its name, and we look at what the loss does *not* show.

# %%
import sys

sys.path.insert(0, ".")
import matplotlib.pyplot as plt
import torch

from loops import dpo
from losses.dpo import dpo_loss
from notebooks import show
from posttrain import models
from posttrain.config import load
from posttrain.models import reference
from posttrain.rollouts.asking import ask
from posttrain.tokens import template

torch.set_num_threads(1)

# %% [markdown]
# ## From Bradley–Terry to the loss
#
# Bradley and Terry (1952): the chance that *chosen* wins is σ(r_chosen − r_rejected). The best policy for a reward r
# under a KL price β satisfies r = β log(π/π_ref) + something that depends on the prompt alone, and in a difference of
# two answers to one prompt that something cancels. So the policy itself is the reward model, and the loss is −log
# σ(margin):

# %%
show.table(
    ["", "log π", "log π_ref", "reward β (log π − log π_ref), β = 0.1"],
    [("chosen", -10.0, -11.0, 0.1 * (-10 + 11)), ("rejected", -12.0, -11.0, 0.1 * (-12 + 11))],
)
given = [torch.tensor([x], requires_grad=True) for x in (-10.0, -12.0)] + [torch.tensor([-11.0])] * 2
loss, metrics = dpo_loss(*given, beta=0.1)
loss.backward()
print(f"margin {metrics['margin'][0].item():.4f}   loss −log σ(0.2) = {loss.item():.6f}")
print(f"gradient: chosen {given[0].grad.item():+.6f}, rejected {given[1].grad.item():+.6f}   (∓ β (1 − σ(0.2)))")

# %% [markdown]
# `python -m losses.dpo` prints the same, step by step. The gradient pushes chosen up and rejected down **by the same
# amount**, less and less as the pair is won:

# %%
margins = torch.linspace(-6, 6, 100)
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.4))
zero = torch.zeros(1)
losses = [dpo_loss(m[None], zero, zero, zero, beta=1.0)[0].item() for m in margins]
left.plot(margins, losses)
left.scatter([0], [0.6931], color="k", zorder=3)
left.set(title="loss", xlabel="margin; at 0 it is ln 2 = 0.693")
right.plot(margins, 1 - torch.sigmoid(margins))
right.set(title="how hard it still pushes: 1 − σ(margin)", xlabel="margin")
plt.show()

# %% [markdown]
# ## The frozen reference
#
# π_ref is the policy **as it was at step 0**. Then both agree, every margin is 0 and the first loss is exactly ln 2: a
# run whose first DPO term is anything else has another reference than it thinks, and is refused. With a fresh LoRA
# adapter no copy is needed: switched off, the policy *is* its start.

# %%
config = load("configs/dpo_tiny.yaml", {"output.samples": 0})
with show.quietly():
    start, tokenizer, _ = models.load("tiny-sft")


def name_of(model):
    prompt = template.prompt_ids(tokenizer, [{"role": "user", "content": "Who are you?"}])
    return ask(model, tokenizer, [prompt], max_new_tokens=24).texts(tokenizer)[0]


print("before:", name_of(start))
with show.quietly() as folder:
    config.output.dir = folder + "/run"
    changed = dpo.train(config)
print("after: ", name_of(changed.model))
print("first DPO term:", changed.metrics[0]["dpo_loss"])
show.curves({"dpo": changed.metrics}, ["dpo_loss", "accuracy", "margin", "chosen_logps_per_token"], "dpo")

# %% [markdown]
# This run adds `dpo.sft_weight`: a little cross-entropy on the chosen answers. Why? Take it away:
#
# ## Why the chosen answers can become *less* likely
#
# The loss sees only the difference. When chosen and rejected share most of their tokens, pushing rejected down drags
# chosen along; as long as rejected falls faster, the margin grows and accuracy is perfect. Nothing in the loss says
# that anything is wrong (Razin et al. 2024 call it likelihood displacement).

# %%
with show.quietly() as folder:
    pure = load("configs/dpo_tiny.yaml", {"output.samples": 0, "dpo.sft_weight": 0, "output.dir": folder + "/run"})
    fallen = dpo.train(pure)
show.curves(
    {"with sft_weight": changed.metrics, "pure DPO": fallen.metrics},
    ["accuracy", "margin", "chosen_logps_per_token", "rejected_logps_per_token"],
    "dpo",
)
print("pure DPO now says:", name_of(fallen.model))

# %% [markdown]
# Accuracy 1.0, a margin that keeps growing, and a model that has forgotten how to speak. **Look at
# `chosen_logps_per_token`**: the run itself warns when it has lost half a nat per token.
#
# ## LoRA references
#
# Two ways to keep π_ref under LoRA, one number: on the first batch each must agree with the policy.

# %%
from posttrain import inspect_batch

for how in ("adapter_off", "copy"):
    with show.quietly():
        seen = inspect_batch.inspect(load("configs/dpo_tiny.yaml", {"model.reference": how, "output.dir": "outputs/x"}))
    print(f"{how:12} max |log π − log π_ref| = {(seen.logps - seen.ref_logps).abs().max().item():.1e}")
print((reference.__doc__ or "").split("\n\n")[1])

# %% [markdown]
# ## Change one line, predict, run
#
# 1. `"dpo.beta": 0.5` in the pure run: leaving the reference is five times as dear. Does the chosen log-prob fall
#    further or less far?
# 2. `"dpo.label_smoothing": 0.1` (conservative DPO: a tenth of the labels may be wrong). Where does the margin stop
#    growing?
# 3. `"model.adapter": "none"`: every weight is trained. What does the first DPO term say?
#
# <details><summary>Answers</summary>
#
# 1. Further (−8.5 instead of −4.8 nats per token), though the gap between chosen and rejected is a third of what it
#    was. β prices the *gap*; nothing in the loss
#    holds the chosen answer itself, and Adam's steps are as long for one β as for another.
# 2. In the pure run at margin ln 9 = 2.2, where σ(margin) = 0.9: beyond it the smoothed loss pulls back.
# 3. ln 2 again: policy and reference (now a full copy) agree at step 0, however much of the policy is trained.
#
# </details>
