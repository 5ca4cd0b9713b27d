# %% [markdown]
# # 2 · Direct preference optimisation
#
# From "people prefer this answer" to a gradient, without a reward model and without sampling (Rafailov et al. 2023).
# Then the embedded model changes its name, and we look at what the loss does *not* show.
#
# **What you need:** the README's set-up; `losses/dpo.py` read, `python -m losses.dpo` run; a minute on one core. Open
# it with `make jupyter`, or run `python notebooks/02_direct_preference_optimization.py`, which needs no Jupyter (its
# pictures go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
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
# Bradley and Terry (1952): the chance that *chosen* wins is σ(r_chosen − r_rejected). What is the best policy for a
# reward r, when leaving the reference costs β nats for a nat? For one prompt, with Z = Σ_y π_ref(y) e^{r(y)/β}:
#
#     E_π[r] − β KL(π‖π_ref) = E_π[r − β log π + β log π_ref]
#                            = −β E_π[log π − log(π_ref e^{r/β})]
#                            = −β E_π[log π − log π*] + β log Z          with π* = π_ref e^{r/β} / Z, a distribution
#                            = −β KL(π‖π*) + β log Z                     largest where π = π*
#
# So r = β log(π*/π_ref) + β log Z, and Z depends on the prompt alone: in the difference of two answers to one prompt it
# cancels. The policy itself is the reward model, and the loss is −log σ(margin):

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
# ![One DPO pair: log-probabilities under policy and reference, two rewards, a margin, a loss and its
# push](../docs/pictures/dpo_pair.svg)
#
# `python -m losses.dpo` prints the same, step by step. **Predict:** how large is the push on a pair that is not yet won
# (margin 0), and on one with margin 4? The gradient pushes chosen up and rejected down **by the same
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
# adapter no copy is needed: switched off, the policy *is* its start. (`dpo.sft_weight: 1` in the shipped config adds
# the chosen answers' mean cross-entropy; why, we see below.) **Predict** the first DPO term of the run.

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
# Now without `dpo.sft_weight`. **Predict:** with the DPO term alone, does the probability of the *chosen* answers rise?
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
# The smallest case that shows it: three answers to one prompt, a policy that knows each by two features,
# softmax(features · w). Chosen and rejected have much in common, the third answer nothing. Every step of DPO makes the
# margin larger, and the *third* answer, which nobody preferred, takes the probability of both:

# %%
features = torch.tensor([[1.0, 1.0], [1.0, 1.6], [0.0, 0.0]])  # chosen, rejected, another
w, one, path = torch.zeros(2, requires_grad=True), torch.full((1,), 1 / 3).log(), []
for _ in range(60):
    log_p = (features @ w).log_softmax(0)  # all start at 1/3
    path.append(log_p.exp().tolist())
    toy, _ = dpo_loss(log_p[:1], log_p[1:2], one, one, beta=1.0)
    (gradient,) = torch.autograd.grad(toy, w)
    w.data -= 0.5 * gradient
fig, axis = plt.subplots(figsize=(4.6, 2.4))
axis.plot(path, label=["chosen", "rejected", "another answer"])
axis.set(title="pure DPO on one pair", xlabel="step", ylabel="probability")
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# Back to the model. Accuracy 1.0, a margin that keeps growing, and a model that has forgotten how to speak. **Look at
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
# 1. `"dpo.beta": 0.5` in the pure run: leaving the reference costs five times as much. Does the chosen log-prob fall
#    further or less far?
# 2. `"dpo.label_smoothing": 0.1` (conservative DPO: a tenth of the labels may be wrong). Where does the margin stop
#    growing?
# 3. `"model.adapter": "none"`: every weight is trained. What does the first DPO term say?
#
# <details><summary>Answers</summary>
#
# 1. Not less: about as far or further (−7 to −8.5 nats per token at the end instead of −5 to −7), while the gap between
#    chosen and rejected ends at a third of what it was. In the first steps the two runs are the same: β scales the
#    gradient, and Adam divides by its size. Later a larger β stops pushing at a smaller gap. So β limits the *gap*;
#    nothing in the loss holds the chosen answer itself. (The same in [the FAQ](../docs/faq.md).)
# 2. In the pure run around margin ln 9 = 2.2, where σ(margin) = 0.9: beyond it the smoothed loss pulls back. (With the
#    shipped `sft_weight` the margin never gets there in these 50 steps.)
# 3. ln 2 again: policy and reference (now a full copy) agree at step 0, however much of the policy is trained.
#
# </details>
