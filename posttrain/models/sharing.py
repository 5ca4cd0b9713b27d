"""Attention over prompts that stand once (posttrain/tokens/shared.py): who sees whom, and with whose own attention.

    prompts   [R, P]: causal
    answers   [N, C] look at [N, P + C]: their prompt, and the answer so far

A model's own attention function (sdpa, eager) does both; only what it is given is gathered for it. So scales, grouped
heads and soft caps stay the model's, windows go by positions, and a layer still knows nothing of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models import short_rows
from posttrain.tokens.batch import Batch, Example, collate
from posttrain.tokens.shared import Shared, Sharing

OURS = "shared_prompts_"  # before the name of the attention that it stands on
KINDS = ("sdpa", short_rows.NAME, "eager")  # those that take a mask of any shape


def attend(
    module: nn.Module,
    query: Tensor,  # [1, heads, M, D], or as the model has them where nothing is shared
    key: Tensor,  # [1, key-value heads, M, D]
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    own: Callable[..., tuple[Tensor, Any]],  # the model's attention function
    dense: bool,  # does it want its masks added to the scores, the causal one as well (eager)?
    shared: Shared | None,
    **more: Any,  # whatever the layer says, handed on to `own` word by word
) -> tuple[Tensor, Any]:
    if shared is None:
        return own(module, query, key, value, attention_mask, **more)
    s, window = shared, more.get("sliding_window")
    prompts, _ = own(
        module,
        *(_gather(x, s.prompts) for x in (query, key, value)),
        _mask(_causal(s.prompts.shape[1], window, query.device), query, dense)
        if dense or (window and window < s.prompts.shape[1])
        else None,
        **more,
    )  # [R, P, heads, D]
    if s.answers.shape[1] == 0:  # every row is muted, all prompt
        return prompts.flatten(0, 1)[s.in_prompts][None], None
    whole = torch.cat([s.prompt_of, s.answers], dim=1)  # [N, P + C]
    answers, _ = own(
        module,
        _gather(query, s.answers),
        *(_gather(x, whole) for x in (key, value)),
        _mask(_of_answers(s, window), query, dense),
        **more,
    )  # [N, C, heads, D]
    out = torch.cat([_without_padding(prompts, s.in_prompts), _without_padding(answers, s.in_answers)])
    return out[None], None  # [1, M, heads, D]


def _gather(x: Tensor, where: Tensor) -> Tensor:
    """[1, heads, M, D] -> [rows, heads, width, D]. As an embedding: its backward pass adds up what a prompt's keys get
    from every answer, always in the same order."""
    _, heads, _, size = x.shape
    rows = nn.functional.embedding(where, x[0].transpose(0, 1).flatten(1))
    return rows.unflatten(-1, (heads, size)).transpose(1, 2)


def _without_padding(x: Tensor, real: Tensor) -> Tensor:
    """[rows, width, heads, D] -> [tokens, heads, D]"""
    heads, size = x.shape[2:]
    return nn.functional.embedding(real, x.flatten(0, 1).flatten(1)).unflatten(-1, (heads, size))


def _causal(width: int, window: int | None, device: torch.device) -> Tensor:
    """[1, 1, P, P] bool"""
    place = torch.arange(width, device=device)
    back = place[:, None] - place
    return ((back >= 0) & (back < (window or width)))[None, None]


def _of_answers(s: Shared, window: int | None) -> Tensor:
    """[N, 1, C, P + C] bool: its whole prompt, and the answer so far."""
    width, place = s.prompt_of.shape[1], torch.arange(s.answers.shape[1], device=s.answers.device)
    of_prompt = torch.arange(width, device=place.device)
    lengths = s.prompt_lengths[:, None, None]
    sees_prompt = (of_prompt < lengths).expand(-1, len(place), -1)
    back = place[:, None] - place
    sees_answer = (back >= 0)[None].expand(len(lengths), -1, -1)
    if window:
        sees_prompt = sees_prompt & (lengths + place[:, None] - of_prompt < window)
        sees_answer = sees_answer & (back < window)
    return torch.cat([sees_prompt, sees_answer], dim=-1)[:, None]


def _mask(may_look: Tensor, query: Tensor, dense: bool) -> Tensor:
    return torch.where(may_look, 0.0, torch.finfo(query.dtype).min).to(query.dtype) if dense else may_look


def reads(batch: Batch) -> dict[str, Any]:
    """What goes through the model: the rows as they lie, or each prompt once."""
    shared = batch.shared
    if shared is None:
        ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
    return {
        "input_ids": shared.input_ids,
        "attention_mask": _no_mask(shared.input_ids.device),
        "position_ids": shared.position_ids,
        "use_cache": False,
        "shared_prompts": shared,
    }


def of_rows(states: Tensor, batch: Batch) -> Tensor:
    """[1, M, H] -> [B, S, H] where each prompt stood once; else as they are."""
    return states if batch.shared is None else nn.functional.embedding(batch.shared.places, states[0])


def _no_mask(device: torch.device) -> Tensor:
    """Four dimensions: the model passes it on as it is, makes none of its own, and nobody looks at it."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)


# ---------------------------------------------------------------- into the model


def attention_of(causal_lm: nn.Module) -> str:
    return causal_lm.config.get_text_config()._attn_implementation.removeprefix(OURS)


def switch_on(causal_lm: nn.Module) -> set[int | None]:
    """The model's attention becomes `attend` over its own: transformers' way to bring one's own attention.

    Returns a set that fills with the windows that its layers ask for."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    kind, windows = attention_of(causal_lm), set()

    def attention(module, query, key, value, attention_mask, shared_prompts=None, **more):
        windows.add(more.get("sliding_window"))
        own = (
            sys.modules[type(module).__module__].eager_attention_forward  # every architecture has its own
            if kind == "eager"
            else ALL_ATTENTION_FUNCTIONS[kind]
        )
        return attend(
            module, query, key, value, attention_mask, own=own, dense=kind == "eager", shared=shared_prompts, **more
        )

    AttentionInterface.register(OURS + kind, attention)
    AttentionMaskInterface.register(OURS + kind, ALL_MASK_ATTENTION_FUNCTIONS[kind])
    causal_lm.set_attn_implementation(OURS + kind)
    return windows


def switch_off(causal_lm: nn.Module) -> None:
    causal_lm.set_attn_implementation(attention_of(causal_lm))


def refusal(causal_lm: nn.Module) -> str | None:
    """Switches it on; the reason, and off again, where this model would not compute the same."""
    config, name = causal_lm.config.get_text_config(), type(causal_lm).__name__
    if attention_of(causal_lm) not in KINDS:
        return (
            f"model.attn_implementation '{attention_of(causal_lm)}' takes no mask of another shape (sdpa and eager do)"
        )
    windows = switch_on(causal_lm)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    same = says_the_same(causal_lm)
    if same and not getattr(config, "attention_chunk_size", None) and (window is None or window in windows):
        return None
    switch_off(causal_lm)
    # A window is wider than a probe, so whether a layer has it must be told by the layer.
    return f"{name} has another attention (recurrent, chunked, or without the model's own window)" if same else (
        f"{name} does not say the same of an answer whose prompt stands once (its layers are recurrent, or do not pass on what "
        "attention is told)"
    )  # fmt: skip


@torch.no_grad()
def says_the_same(causal_lm: nn.Module) -> bool:
    """Of two prompts and three answers, all of different lengths, with the prompts once and apart."""
    rows = ([3, 4, 5, 6], [7, 8]), ([3, 4, 5, 6], [8, 3, 4]), ([9, 10], [4, 5, 6, 7])
    weight, always = causal_lm.get_input_embeddings().weight, Sharing(True)
    always.on = True
    once = collate([Example.of(*row) for row in rows], 0, always).to(weight.device)
    apart = once.apart()
    training, tolerance = causal_lm.training, 1e-3 if weight.dtype == torch.float32 else 0.02
    causal_lm.eval()
    try:
        expected = causal_lm.base_model(**reads(apart)).last_hidden_state.float()
        got = of_rows(causal_lm.base_model(**reads(once)).last_hidden_state, once).float()
    except Exception:  # whatever an architecture says of a mask or a word that it does not know
        return False
    finally:
        causal_lm.train(training)
    real = apart.attention_mask
    return bool((got[real] - expected[real]).abs().max() <= tolerance * expected[real].abs().max())
