"""Scalar heads: a backbone that reads a whole answer and says one number (reward model), or one per token (critic).

The head is a Linear without bias that starts at 0, so at step 0 every score is 0 and every loss ln 2. A score is read
at the last real token, found *by length*. A saved reward model loads with plain AutoModelForSequenceClassification,
whose own forward finds the last token as the last id that is not pad_token_id: so the pad token it is saved with must
be one that no answer ends with.

PPO's critic has the same head after every token, and comes in two kinds:
    separate   a network of its own, from the same start as the policy: it cannot spoil the policy
    shared     a value head on the policy's own backbone: half the memory, and the two losses pull at the same weights
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.models import checks, loading, lora, quantize, sharing
from posttrain.models.logps import CompletionLogps
from posttrain.tokens import template
from posttrain.tokens.batch import Batch, Example, collate

NO_SCORE = (
    "{} is a language model, not a reward model: {}. Train a reward model of it with loops.reward, and give its folder"
)


def load_scorer(config, run) -> tuple[nn.Module, object, list[str]]:
    """The reward model to train, from config.model: the backbone of a causal model under a fresh head of zeros."""
    causal, tokenizer, lines = loading.load_frozen_or_whole(config, run)
    scorer = as_scorer(causal)
    if config.adapter == "lora":
        scorer = lora.add(scorer, config.lora, loading.base_folder(config, run, causal, tokenizer), task_type="SEQ_CLS")
    loading.use_gradient_checkpointing(scorer, config)
    return scorer, tokenizer, lines + checks.about_experts(scorer, config.unbalanced_experts)


def as_scorer(causal: nn.Module) -> nn.Module:
    """...ForSequenceClassification of one label around the causal model's own backbone (not a copy)."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    try:
        with torch.device("meta"):  # only its shape: the weights are the causal model's
            scorer = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise UserError(
            f"transformers has no sequence classifier for {config.model_type}, so no reward model and no separate critic can be made of it "
            "(loops.ppo: set ppo.critic: shared)"
        ) from None
    setattr(scorer, scorer.base_model_prefix, causal.base_model)
    weight = causal.get_input_embeddings().weight
    head = nn.Linear(scorer.score.in_features, 1, bias=False, device=weight.device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    scorer.score = head
    for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer"):
        if hasattr(causal, name):
            setattr(scorer, name, getattr(causal, name))
    return scorer


def use_a_pad_that_ends_nothing(tokenizer) -> int:
    """Give the tokenizer a pad token that is no stop token, from those it has; returns its id."""
    stops = set(template.stop_ids(tokenizer))
    if tokenizer.pad_token_id in stops:
        others = sorted(template.special_ids(tokenizer) - stops)
        if not others:
            raise UserError(
                f"the tokenizer pads with {tokenizer.pad_token!r}, which also ends an answer, and has no other special token: "
                "AutoModelForSequenceClassification would read the score at the wrong place; add a pad token to the tokenizer"
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(others[0])
    return tokenizer.pad_token_id


def save_scorer(model: nn.Module, tokenizer, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """For plain AutoModelForSequenceClassification (an adapter: peft's AutoPeftModelForSequenceClassification,
    num_labels=1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)
    if lora.is_adapter(folder):
        full = model.get_base_model()
        lora.write_note(Path(folder), quantize.bits_of(full), full.get_input_embeddings().weight.dtype)


def load_reward_model(name: str, *, device: torch.device | str, key: str) -> tuple[nn.Module, object]:
    """(a frozen CompletionScores, its tokenizer) from what save_scorer wrote, or a hub model of that kind."""
    from transformers import AutoModelForSequenceClassification

    path = loading.find(name, key)
    try:
        tokenizer = loading.read_tokenizer(path, {})
        if lora.is_adapter(path):
            if lora.task_of(path) != "SEQ_CLS":
                raise UserError(NO_SCORE.format(f"{key} '{name}'", "it is an adapter of one"))
            base = lora.base_of(path)
            causal, _, _ = loading.load(
                base.name, quantization=base.quantization, dtype=base.dtype, device=device, key=key
            )
            with lora.quiet_peft() as peft:
                model = peft.PeftModel.from_pretrained(as_scorer(causal), path)
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
            missing = sorted(info["missing_keys"])
            if missing and not any(name.startswith(f"{model.base_model_prefix}.") for name in missing):
                raise UserError(NO_SCORE.format(f"{key} '{name}'", f"it has no {', '.join(missing)}"))
            checks.refuse_random_weights(model, info, f"{key} '{name}'")
            model = model.to(device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{key} '{name}': cannot be loaded as a reward model: {loading.why_not(path, error)}") from None
    if model.config.num_labels != 1:
        raise UserError(f"{key} '{name}' gives {model.config.num_labels} numbers, not one score: is it a classifier?")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # scores are read by length: any id will do
    model.requires_grad_(False)
    return CompletionScores(model.eval()), tokenizer


class CompletionScores(nn.Module):
    """forward(batch) -> scores [B] in float32, read at the last real token of each row."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.shares_prompts = False
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # for FSDP: what a layer is

    def share_prompts(self) -> str | None:
        """From now on the prompts of a batch are read once, where it says so; the reason if they cannot be."""
        problem = sharing.refusal(self._full)
        self.shares_prompts = problem is None
        return problem

    def forward(self, batch: Batch) -> Tensor:
        hidden = self._hidden(batch)  # [B, S, H]
        places = torch.arange(1, batch.input_ids.shape[1] + 1, device=hidden.device)
        last = (batch.attention_mask * places).argmax(dim=1)  # [B]: by length, padded left or right
        return per_token(self.head, hidden[torch.arange(len(last), device=last.device), last])

    def values(self, batch: Batch) -> Tensor:
        """As a critic: the head after every token, [B, S]."""
        return per_token(self.head, self._hidden(batch))

    def _hidden(self, batch: Batch) -> Tensor:
        batch = batch if self.shares_prompts else batch.apart()
        return sharing.of_rows(self.backbone(**sharing.reads(batch)).last_hidden_state, batch)

    @property
    def scalar_heads(self) -> list[nn.Module]:
        """What stays float32 where the rest computes in bf16."""
        return [self.head]

    @property
    def _full(self) -> nn.Module:
        return lora.without_adapter(self.model)

    @property
    def backbone(self) -> nn.Module:
        return self._full.base_model

    @property
    def head(self) -> nn.Module:
        return self._full.score


def per_token(head: nn.Module, hidden: Tensor) -> Tensor:
    """[..., H] -> [...]: the head in float32 also under autocast, where bf16 would leave a score three digits."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float()).squeeze(-1)


class ActorCritic(nn.Module):
    """Policy and critic in one module, so that DDP's hooks fire for both and one backward pass fills all gradients.

    forward(batch, temperature) -> (logps [B, T], entropy [B, T], values [B, S]).

    values[:, t] is the value of the state after token t, which is the state before token t + 1: values[:, :-1] belongs
    to the predictions [B, T], and the value after a row's last token is what a truncated answer bootstraps from."""

    def __init__(self, policy: CompletionLogps, critic: CompletionScores | None):
        super().__init__()
        self.policy, self.critic = policy, critic
        self._no_split_modules = policy._no_split_modules
        if critic is None:
            weight = policy.model.get_input_embeddings().weight
            self.head = nn.Linear(policy.hidden_size, 1, bias=False, device=weight.device)
            nn.init.zeros_(self.head.weight)

    @property
    def scalar_heads(self) -> list[nn.Module]:
        return [self.head] if self.critic is None else self.critic.scalar_heads

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        if self.critic is None:
            logps, entropy, hidden = self.policy.with_hidden(batch, temperature)
            return logps, entropy, per_token(self.head, hidden)
        logps, entropy = self.policy(batch, temperature)
        return logps, entropy, self.critic.values(batch)


@torch.no_grad()
def score_examples(scorer: CompletionScores, examples: list[Example], pad_id: int, batch_size: int) -> list[float]:
    """The scores of many rows, longest together; in their own order."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]), reverse=True)
    scores = [0.0] * len(examples)
    device = scorer.head.weight.device if hasattr(scorer.head, "weight") else next(scorer.parameters()).device
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = collate([examples[i] for i in picked], pad_id).to(device)
        for i, score in zip(picked, scorer(batch).tolist(), strict=True):
            scores[i] = score
    return scores


def refuse_another_vocabulary(tokenizer, its_tokenizer, name: str) -> None:
    """Sampled ids are scored as they are: decoding and tokenising again would score another text."""
    if tokenizer.get_vocab() != its_tokenizer.get_vocab():
        raise UserError(
            f"the reward model '{name}' has another vocabulary than the policy: train one on the policy's own backbone (loops.reward)"
        )
