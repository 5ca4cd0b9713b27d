"""Each method's own keys, and the config class that puts them beside the shared ones (keys.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from posttrain.config.keys import (
    Config,
    Data,
    DpoPreflight,
    GrpoPreflight,
    Model,
    Output,
    PpoPreflight,
    RewardPreflight,
    RunConfig,
    Section,
    SftPreflight,
    Training,
)


class Scratch(Section):
    """A model of random weights."""

    type: str = Field("llama", description="the architecture, as transformers calls it (model_type)")
    shape: dict[str, Any] = Field(
        description="keys of its transformers config, e.g. hidden_size, num_hidden_layers; the vocabulary's size is the tokenizer's"
    )
    tokenizer: str = Field(description="tiny (the embedded one), a hub id, or a folder")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="compute type. The weights stay float32; auto: bf16 autocast on a GPU that has bf16, else float32",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="keep fewer activations, compute them again in the backward pass: less memory, same gradients",
    )

    @field_validator("shape")
    @classmethod
    def _numbers_from_the_command_line(cls, shape: dict[str, Any]) -> dict[str, Any]:
        return {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in shape.items()}


class Text(Section):
    name: str | None = Field(
        None, description="tiny-text (endless), or a file, folder or hub set with a column `text`, read in its order"
    )
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="which split of it")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="tiny-text: what is written")
    max_length: int = Field(1024, ge=2, description="tokens per row: documents are laid end to end and cut into these")


class PretrainTraining(Training):
    max_steps: int = Field(
        ge=1, description="stop after this many optimiser steps: the text is read again as often as it takes"
    )  # type: ignore[assignment]
    schedule: Literal["linear", "cosine", "constant", "wsd"] = Field(  # type: ignore[assignment]
        "wsd", description="how it falls; wsd: a plateau over 30 % of the run, then straight down to 5 % of the peak"
    )
    betas: list[float] = Field(
        [0.9, 0.95], min_length=2, max_length=2, description="AdamW's, of the gradient's mean and of its square"
    )
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="what weight_decay acts on; all: biases and norms, too"
    )


class Pretrain(Section):
    separator: str | None = Field(
        None, description="the token that stands behind every document; default the tokenizer's eos"
    )
    check: str | None = Field(
        None, description="package.module:function, called with (model, tokenizer) at the end; gives a number"
    )
    min_score: float = Field(0.0, description="check: below this the run fails and nothing is saved")


class PretrainConfig(RunConfig):
    model: Scratch
    data: Text = Field(default_factory=Text)
    training: PretrainTraining
    pretrain: Pretrain = Field(default_factory=Pretrain)

    @model_validator(mode="after")
    def _nothing_is_evaluated(self):
        if self.training.eval_every is not None or self.training.best_metric is not None:
            raise ValueError(
                "training.eval_every and best_metric: loops.pretrain evaluates nothing; see pretrain.check"
            )
        return self


class SftData(Data):
    train_on: Literal["all", "last"] = Field(
        "all", description="of a conversation, learn every assistant turn, or only the last"
    )


class SftTraining(Training):
    packing: bool = Field(
        False,
        description="lay the rows of a step end to end in rows of data.max_length tokens, each seeing only itself: same loss, no padding; "
        "micro_batch_size then counts packed rows",
    )


class Sft(Section):
    length_weighting: Literal["token", "sequence"] = Field(
        "token", description="token: every token counts the same; sequence: every row does"
    )


class SftConfig(Config):
    data: SftData = Field(default_factory=SftData)
    training: SftTraining = Field(default_factory=SftTraining)
    sft: Sft = Field(default_factory=Sft)
    preflight: SftPreflight = Field(default_factory=SftPreflight)

    @model_validator(mode="after")
    def _packed_rows_are_not_rows(self):
        if self.training.packing and self.sft.length_weighting == "sequence":
            raise ValueError(
                "training.packing lays several rows into one: sft.length_weighting: sequence needs them apart"
            )
        return self


class ModelWithReference(Model):
    reference: str = Field(
        "auto",
        description="the frozen reference: copy (of what is trained, as it was at step 0), adapter_off (the policy without its fresh "
        "adapter: no copy at all), a model name or folder, or auto (adapter_off with a fresh adapter, else copy)",
    )

    @model_validator(mode="after")
    def _adapter_off_needs_an_adapter(self):
        if self.reference == "adapter_off" and self.adapter != "lora":
            raise ValueError(
                "reference: adapter_off needs adapter: lora (without an adapter there is nothing to switch off; use copy)"
            )
        if self.reference == "adapter_off" and self.adapter_path is not None:
            raise ValueError(
                "reference: adapter_off with adapter_path: without its adapter the policy is not what it was at step 0; use auto or copy"
            )
        return self


class Dpo(Section):
    beta: float = Field(
        0.1, gt=0, description="how dearly the policy pays for leaving the reference; smaller moves further"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of wrong labels (conservative DPO)")
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="times the token-mean NLL of the chosen completions, added to the loss: keeps their probability from falling",
    )
    precompute: bool = Field(
        False, description="compute the reference's log-probs once before training, then free the reference"
    )


class DpoConfig(Config):
    model: ModelWithReference
    dpo: Dpo = Field(default_factory=Dpo)
    preflight: DpoPreflight = Field(default_factory=DpoPreflight)

    @model_validator(mode="after")
    def _a_stream_has_no_index(self):
        if self.dpo.precompute and self.data.streaming:
            raise ValueError("dpo.precompute goes through all rows beforehand: leave it out with data.streaming")
        return self


class Reward(Section):
    loss: Literal["preference", "outcome"] = Field(
        "preference",
        description="preference: chosen above rejected (Bradley-Terry); outcome: right or wrong (rows prompt, completion, label)",
    )
    margin: float = Field(0.0, ge=0, description="preference: how much higher the chosen score has to be")
    center_coef: float = Field(
        0.0,
        ge=0,
        description="preference: times (chosen + rejected score)^2, which puts the mean score at 0; e.g. 0.01",
    )


class RewardConfig(Config):
    reward: Reward = Field(default_factory=Reward)
    preflight: RewardPreflight = Field(default_factory=RewardPreflight)

    @model_validator(mode="after")
    def _what_the_loss_uses(self):
        if self.reward.loss == "outcome" and (self.reward.margin or self.reward.center_coef):
            raise ValueError(
                "reward.margin and reward.center_coef belong to loss: preference; an outcome score has its own zero"
            )
        if self.model.adapter_path is not None:
            raise ValueError(
                "model.adapter_path: a reward model takes a fresh adapter; give the adapter's folder as model.name"
            )
        return self


class GrpoTraining(Training):
    batch_size: int | None = Field(  # type: ignore[assignment]
        None,
        ge=1,
        description="completions per optimiser step; follows from the method's own keys (prompts_per_step, minibatches …), refused if it says otherwise",
    )


class Grpo(Section):
    prompts_per_step: int = Field(8, ge=1, description="prompts per rollout, all processes together")
    group_size: int = Field(
        8, ge=2, description="answers sampled to each prompt (G); 1 has nothing to be compared with"
    )
    max_new_tokens: int = Field(
        256, ge=1, description="longest answer; one that has not ended by then is truncated and flagged"
    )
    temperature: float = Field(
        1.0, gt=0, description="of sampling; policy, old and reference log-probs are all taken at it"
    )
    minibatches: int = Field(
        1, ge=1, description="optimiser steps per pass over a rollout, each with its own token total"
    )
    inner_epochs: int = Field(
        1, ge=1, description="passes over a rollout; above 1 the ratio leaves 1 and clipping begins to act"
    )
    clip_low: float = Field(0.2, ge=0, le=1, description="the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="and at 1 + clip_high (DAPO: 0.28, lets rare tokens grow)")
    kl_coef: float = Field(0.04, ge=0, description="weight of the KL penalty to the reference; 0: no reference is kept")
    kl_estimator: Literal["k3_is", "k3", "k2"] = Field(
        "k3_is", description="k3_is has the gradient of KL(policy||reference); k3 is the paper's (losses/kl.py)"
    )
    advantage: Literal["group", "leave_one_out"] = Field(
        "group", description="baseline: the group's mean, or the mean of the other answers"
    )
    advantage_scale: Literal["std", "none"] = Field(
        "std", description="divide by the group's standard deviation (GRPO) or not (Dr. GRPO)"
    )
    length_weighting: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="token: DAPO; sequence: GRPO's 1/|o_i|; constant: Dr. GRPO's 1/max_new_tokens (losses/weights.py)",
    )
    mask_truncated: bool = Field(
        False, description="leave truncated answers out of the loss (they keep their reward in the group's mean)"
    )
    reward: str | list[str] = Field(
        "answer",
        description="answer (the number after ####, or boxed, equals the row's `answer`), or package.module:function, or a list of these",
    )
    reward_weights: list[float] | None = Field(None, description="one weight per reward function; default 1 each")


class GrpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    grpo: Grpo = Field(default_factory=Grpo)
    preflight: GrpoPreflight = Field(default_factory=GrpoPreflight)

    @model_validator(mode="after")
    def _sizes_fit(self):
        g, t = self.grpo, self.training
        rows = g.prompts_per_step * g.group_size
        if rows % g.minibatches:
            raise ValueError(f"grpo.minibatches = {g.minibatches} does not divide the {rows} completions of a rollout")
        if t.batch_size not in (None, rows // g.minibatches):
            raise ValueError(
                f"training.batch_size = {t.batch_size}, but grpo gives {g.prompts_per_step} prompts x {g.group_size} answers / "
                f"{g.minibatches} minibatches = {rows // g.minibatches} completions per optimiser step: leave batch_size out, or change grpo"
            )
        if g.advantage == "leave_one_out" and g.advantage_scale != "none":
            raise ValueError(
                "grpo.advantage: leave_one_out is not divided by a standard deviation: set advantage_scale: none as well"
            )
        names = [g.reward] if isinstance(g.reward, str) else g.reward
        if not names:
            raise ValueError("grpo.reward names no reward function")
        if g.reward_weights is not None and len(g.reward_weights) != len(names):
            raise ValueError(
                f"grpo.reward_weights has {len(g.reward_weights)} entries for {len(names)} reward functions"
            )
        return self


class Ppo(Section):
    prompts_per_step: int = Field(128, ge=1, description="prompts per rollout, one answer each, all processes together")
    max_new_tokens: int = Field(
        256, ge=1, description="longest answer; one that has not ended by then is truncated and flagged"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling; all log-probs are taken at it")
    minibatches: int = Field(
        1, ge=1, description="optimiser steps per pass over a rollout, each with its own token total"
    )
    inner_epochs: int = Field(2, ge=1, description="passes over a rollout")
    clip_eps: float = Field(0.2, ge=0, le=1, description="the policy's ratio is clipped at 1 +/- clip_eps")
    value_clip_eps: float | None = Field(
        0.2, ge=0, description="a value may move this far from what it was at the rollout; none: no clip"
    )
    value_coef: float = Field(0.5, ge=0, description="weight of the value loss beside the policy loss")
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE: 1 trusts the rewards, 0 the value function")
    whiten: bool = Field(True, description="give the advantages of a rollout mean 0 and variance 1")
    critic: Literal["separate", "shared"] = Field(
        "separate",
        description="separate: a second network from the same start; shared: a value head on the policy's backbone",
    )
    critic_learning_rate: float | None = Field(
        None,
        gt=0,
        description="of the critic (or value head); default training.learning_rate. It has to keep up with the policy",
    )
    kl_coef: float = Field(
        0.05, ge=0, description="KL in the reward: every token pays this times its log-ratio to the reference"
    )
    kl_loss_coef: float = Field(0.0, ge=0, description="KL in the loss instead (k3_is); one of the two must be 0")
    kl_target: float | None = Field(
        None, gt=0, description="adapt the coefficient until the KL is about this (nats per token); none: fixed"
    )
    truncated: Literal["penalty", "bootstrap"] = Field(
        "penalty",
        description="an answer that did not end: penalty gives it its score (or truncation_penalty) and nothing follows; bootstrap no "
        "score, but the value of its last state",
    )
    truncation_penalty: float | None = Field(
        None, description="truncated: penalty: this instead of the score of an answer that did not end"
    )
    reward: str | list[str] | None = Field(
        None, description="verifiable: answer, or package.module:function, or a list of these"
    )
    reward_weights: list[float] | None = Field(None, description="one weight per reward function; default 1 each")
    reward_model: str | None = Field(
        None, description="or a learned reward: the folder of a model made by loops.reward, same vocabulary"
    )
    watch: str | list[str] | None = Field(
        None, description="reward functions that are only measured, not learned from: where over-optimisation shows"
    )

    @property
    def group_size(self) -> int:
        """Answers to a prompt. The baseline is the value function, so one is enough."""
        return 1

    @model_validator(mode="after")
    def _one_of_two(self):
        if self.kl_coef > 0 and self.kl_loss_coef > 0:
            raise ValueError(
                f"kl_coef = {self.kl_coef:g} (in the reward) and kl_loss_coef = {self.kl_loss_coef:g} (in the loss): the KL would be paid "
                "twice; set one of them to 0"
            )
        if (self.reward is None) == (self.reward_model is None):
            raise ValueError(
                "give either reward (functions) or reward_model (a folder), not "
                + ("both" if self.reward else "neither")
            )
        if self.truncation_penalty is not None and self.truncated == "bootstrap":
            raise ValueError(
                "truncation_penalty with truncated: bootstrap would count the ending twice: use truncated: penalty"
            )
        if self.kl_target is not None and self.kl_coef == self.kl_loss_coef == 0:
            raise ValueError("kl_target needs a kl_coef (or kl_loss_coef) above 0 to begin with")
        if self.prompts_per_step % self.minibatches:
            raise ValueError(
                f"minibatches = {self.minibatches} does not divide the {self.prompts_per_step} answers of a rollout"
            )
        return self


class PpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    ppo: Ppo = Field(default_factory=Ppo)
    preflight: PpoPreflight = Field(default_factory=PpoPreflight)

    @model_validator(mode="after")
    def _sizes_fit(self):
        if self.ppo.critic == "separate" and self.model.adapter_path is not None:
            raise ValueError(
                "ppo.critic: separate starts from model.name, not from model.adapter_path: use critic: shared, or give the adapter's folder "
                "as model.name"
            )
        rows = self.ppo.prompts_per_step // self.ppo.minibatches
        if self.training.batch_size not in (None, rows):
            raise ValueError(
                f"training.batch_size = {self.training.batch_size}, but ppo gives {self.ppo.prompts_per_step} answers / "
                f"{self.ppo.minibatches} minibatches = {rows} per optimiser step: leave batch_size out, or change ppo"
            )
        return self


class Stage(Section):
    config: str = Field(description="the stage's own config file, beside this one")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="keys of that file to change, e.g. training.max_steps: 20"
    )


class Ladder(Section):
    base: str = Field(
        "tiny-base",
        description="the model at the foot: tiny-base, or a folder made by python -m posttrain.tiny --seed N --out FOLDER",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="training.seed of every stage")
    sft: Stage = Field(default_factory=lambda: Stage(config="sft_tiny.yaml"), description="stage 1")
    dpo: Stage = Field(
        default_factory=lambda: Stage(config="dpo_tiny.yaml"), description="stage 2, from stage 1's model"
    )
    grpo: Stage = Field(
        default_factory=lambda: Stage(config="grpo_tiny.yaml"),
        description="stage 3, from stage 2's model, its adapter merged",
    )
    ppo: Stage = Field(
        default_factory=lambda: Stage(config="ppo_tiny.yaml"), description="beside GRPO, from the same model"
    )
    best_of_k: Stage = Field(
        default_factory=lambda: Stage(config="sft_tiny.yaml", overrides={"training.learning_rate": 1e-3}),
        description="beside GRPO, from the same model: SFT on the right ones of pass_at sampled answers (rejection sampling)",
    )
    beside: list[Literal["ppo", "best_of_k"]] = Field(
        default_factory=list, description="stages to climb and report beside GRPO: ppo, best_of_k"
    )
    problems: int = Field(300, ge=1, le=400, description="held-out word problems to evaluate each stage on")
    identity: int = Field(100, ge=1, le=100, description="held-out identity questions")
    pass_at: int = Field(8, ge=1, description="samples per problem for pass@k and the KL column")


class LadderConfig(Section):
    ladder: Ladder = Field(default_factory=Ladder)
    output: Output = Field(default_factory=Output)

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or "outputs/ladder")

    @property
    def method(self) -> str:
        return "ladder"


METHODS: dict[str, type[Section]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "reward": RewardConfig,
    "grpo": GrpoConfig,
    "ppo": PpoConfig,
    "ladder": LadderConfig,
}

_TRUNCATED = (
    "is refused in RL: a token sampled from a cut-off distribution has another log-probability than the trainer computes, "
    "so ratio and KL would be biased; use temperature alone"
)
REFUSED = {
    name: _TRUNCATED
    for name in ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
}
