"""How much memory a run will want, counted from its config and the shapes of its model: an estimate, part by part.

What is stored (weights, gradients, optimiser, reference) is counted exactly from the parameters. Activations and the
sampler's cache are for the longest rows that the config allows; most batches are shorter. Per process: DDP keeps all of
it on each; FSDP2 a share of what is stored, and gathers what it is about to use (posttrain/models/sharded.py)."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
# bits a weight; nf4 with double quantisation: 4 + 8/64 + 32/(64 * 256)
BITS = {"none": None, "8bit": 8.0, "4bit": 4.127}


@dataclass(frozen=True)
class Shape:
    """What the estimate needs to know of a model."""

    parameters: int
    linear: int  # of them, in the linear layers of the blocks: what is quantised
    outside: int  # of them, in no block: embeddings and head, which FSDP2 gathers as one
    adapter: int  # trainable parameters of a LoRA adapter, 0 without one
    rank: int  # and its rank
    layers: int
    hidden: int
    intermediate: int
    heads: int  # of the attention of one layer, 0 without any
    queries: int  # width of the queries of one layer, all heads together
    key_value: int  # width of the keys (and of the values) of one layer
    longest: int  # tokens the model can read
    vocabulary: int


def shape_of(model_config, lora=None) -> Shape:
    """From a transformers config, on the meta device: no weight is loaded or allocated."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    head, text = model.get_output_embeddings(), model_config.get_text_config()
    # transformers' Conv1D (GPT-2) has a weight [in, out] and is no nn.Linear
    layers = {n: m for n, m in model.named_modules() if m is not head and (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")}  # fmt: skip
    adapter = 0
    if lora is not None:
        targets = (
            None if lora.targets == "all-linear" else [lora.targets] if isinstance(lora.targets, str) else lora.targets
        )
        adapted = [m for n, m in layers.items() if targets is None or n.rsplit(".", 1)[-1] in targets]
        adapter = sum(lora.rank * sum(m.weight.shape) for m in adapted)
    heads = getattr(text, "num_attention_heads", 0)  # a state space model has none
    head_dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    experts = getattr(text, "num_experts_per_tok", None) or 1
    width = getattr(text, "moe_intermediate_size", None) or max(
        m.weight.shape[i] for m in layers.values() for i in (0, 1)
    )
    names = set(getattr(model, "_no_split_modules", None) or ())
    in_blocks = {id(p) for block in model.modules() if type(block).__name__ in names for p in block.parameters()}
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in layers.values()),
        outside=sum(p.numel() for p in model.parameters() if id(p) not in in_blocks),
        adapter=adapter,
        rank=0 if lora is None else lora.rank,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=width * experts,
        heads=heads,
        queries=head_dim * heads,
        key_value=head_dim * (getattr(text, "num_key_value_heads", None) or heads),
        longest=getattr(text, "max_position_embeddings", None) or 1024,
        vocabulary=text.vocab_size,
    )


def estimate(config, shape: Shape, compute_bytes: int, shares: int = 1) -> dict[str, float]:
    """{part: bytes}. compute_bytes: 2 under bf16, 4 in float32. shares: processes that FSDP2 spreads models over."""
    m, method, lora = config.model, config.method, config.model.adapter == "lora"
    trained = shape.adapter if lora else shape.parameters
    if not lora:
        weights = 4.0 * shape.parameters
    else:
        bits = BITS[m.quantization]
        frozen = compute_bytes * (shape.parameters if bits is None else shape.parameters - shape.linear)
        packed = 0 if bits is None else shape.linear * bits / 8
        weights = frozen + packed + 4.0 * shape.adapter
    state = 2 if config.training.optimizer == "adamw_8bit" else 8
    parts = {"weights": weights, "gradients": 4.0 * trained, "optimiser": float(state * trained)}

    reference = getattr(m, "reference", None)
    section = getattr(config, method)
    needs_one = method in ("dpo", "kto") or max(getattr(section, "kl_coef", 0), getattr(section, "kl_loss_coef", 0)) > 0
    if reference is not None and needs_one:
        if reference not in ("auto", "copy", "adapter_off"):
            parts["reference"] = float(compute_bytes * shape.parameters)
        elif lora:
            fresh = reference != "copy" and m.adapter_path is None
            parts["reference"] = 0.0 if fresh else 4.0 * shape.adapter
        else:
            parts["reference"] = 4.0 * shape.parameters
    if method == "ppo" and section.critic == "separate":
        parts["critic"] = sum(parts[name] for name in ("weights", "gradients", "optimiser"))
    if method == "ppo" and section.reward_model is not None:
        parts["reward model (taken to be as large)"] = 4.0 * shape.parameters
    if getattr(section, "teacher", None) is not None:
        parts["teacher (taken to be as large)"] = float(compute_bytes * shape.parameters)
    if shares > 1:
        parts = {name: size / shares for name, size in parts.items()}
        if lora and m.quantization != "none":  # packed weights are not cut into pieces
            parts["weights"] += packed * (1 - 1 / shares)
            parts |= {"critic": parts["critic"] + packed * (1 - 1 / shares)} if "critic" in parts else {}
        parts |= gathered(config, shape, compute_bytes)

    length = config.data.max_length or min(1024, shape.longest)
    rows = config.training.micro_batch_size * (
        2 if method in ("dpo", "simpo") or (method == "reward" and section.loss == "preference") else 1
    )
    tokens = rows * length
    # kept for the backward pass, per token and layer: ~8 rows of the hidden size (norms, queries, attention,
    # residuals), keys and values, ~4 of the MLP's width (gate, up, activation, product)
    per_layer = compute_bytes * (8 * shape.hidden + 2 * shape.key_value + 4 * shape.intermediate)
    kept = (
        shape.layers * compute_bytes * shape.hidden + per_layer
        if m.gradient_checkpointing
        else shape.layers * per_layer
    )
    parts["activations"] = float(tokens * kept) * (2 if method == "ppo" and section.critic == "separate" else 1)
    # float32 logits, their softmax and its gradient, of one chunk (CompletionLogps); and what is kept of them all
    if method != "reward":
        chunk = min(tokens, max(64, min(1024, 2**24 // shape.vocabulary)))
        kept = tokens * shape.vocabulary * compute_bytes
        within = not lora and kept <= config.training.logit_budget_mb * 2**20
        parts["logits"] = 3.0 * chunk * shape.vocabulary * 4 + (kept if within else 0)
    if method in ("grpo", "ppo"):
        answers = section.prompts_per_step * (section.group_size if method == "grpo" else 1)
        answers = min(answers, config.rollout.batch_rows or answers)
        cache = 2 * shape.layers * shape.key_value * compute_bytes
        parts["sampler's cache (not at the same time)"] = float(answers * length * cache)
    return parts


def gathered(config, shape: Shape, compute_bytes: int) -> dict[str, float]:
    """What FSDP2 gathers of the policy, {part: bytes}. In a step: what lies outside the layers, one layer and the one
    that is fetched ahead; in full fine-tuning also the gradients of the largest of them, in the compute type and, to
    be added up, in float32. To sample: the whole (posttrain.models.sharded.gathered)."""
    blocks = shape.parameters - shape.outside
    if config.model.quantization != "none":
        blocks -= shape.linear  # packed weights are whole already
    layer, trained = blocks / shape.layers, config.model.adapter == "none"
    in_a_step = compute_bytes * (shape.outside + 2 * layer) + trained * (compute_bytes + 4) * max(shape.outside, layer)
    networks = 2 if config.method == "ppo" and config.ppo.critic == "separate" else 1
    parts = {"gathered in a step": networks * float(in_a_step)}
    if config.method in ("grpo", "ppo") or config.output.samples:
        parts["sampler's whole model (not at the same time)"] = networks * float(
            compute_bytes * (blocks + shape.outside)
        )
    return parts


def total(parts: dict[str, float]) -> float:
    """The peak: what the sampler needs is gone when the activations are there."""
    sampler = sum(v for k, v in parts.items() if k.startswith("sampler"))
    step = sum(parts.get(name, 0) for name in ("activations", "logits", "gathered in a step"))
    return sum(parts.values()) - min(sampler, step)
