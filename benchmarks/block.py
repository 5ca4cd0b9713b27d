"""What of a model is no product of matrices: the bytes that it reads and writes, and the operations that it starts.

    python -m benchmarks.block        prints the constants of posttrain/models/duration.py, in a few seconds

Every operation of a small Llama is seen by torch's dispatcher; a layer is what a second one adds, a token what 64 more
add."""

import posttrain  # noqa: F401  (sets OMP_WAIT_POLICY before torch is imported)

import torch  # isort: skip
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from losses.head import head_logps
from posttrain.config import load
from posttrain.models import lora
from posttrain.rollouts.sampling import inverse_transform

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "scaled_dot_product")


class Elsewhere(TorchDispatchMode):
    """Bytes that are read or written by what is no product, and all operations that are started."""

    def __init__(self):
        super().__init__()
        self.bytes, self.calls = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in ("detach", "empty_like", "empty", "_unsafe_view"):
            self.calls += 1
            if not any(part in name for part in PRODUCTS):
                leaves = [x for y in (args, kwargs or {}, out) for x in torch.utils._pytree.tree_leaves(y)]
                self.bytes += sum(x.numel() * x.element_size() for x in leaves if isinstance(x, torch.Tensor))
        return out


def of_a_layer(hidden: int, wide: int, dtype: torch.dtype, adapted: bool) -> list[tuple[float, float]]:
    """Forward, backward: (bytes a token, operations), of the second layer: two layers less one, and 128 tokens less
    64."""
    found = [_of_layers(layers, tokens, hidden, wide, dtype, adapted) for layers in (1, 2) for tokens in (64, 128)]
    one, one_long, two, two_long = found
    return [
        ((two_long[way][0] - one_long[way][0] - two[way][0] + one[way][0]) / 128, two[way][1] - one[way][1])
        for way in (0, 1)
    ]


def _of_layers(layers: int, tokens: int, hidden: int, wide: int, dtype: torch.dtype, adapted: bool) -> list[tuple]:
    """Two rows of `tokens` tokens, as a run computes them: forward, backward."""
    more = dict(num_hidden_layers=layers, num_attention_heads=4, vocab_size=32)
    model = LlamaForCausalLM(LlamaConfig(hidden_size=hidden, intermediate_size=wide, **more)).train()
    if adapted:
        model = lora.add(model.to(dtype), load(None, {"model.name": "x"}, method="sft").model.lora, "x")
    ids = torch.randint(0, 32, (2, tokens), generator=torch.Generator().manual_seed(0))
    backbone = (model.get_base_model() if adapted else model).base_model
    with Elsewhere() as forward, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = backbone(input_ids=ids, use_cache=False).last_hidden_state.sum()
    with Elsewhere() as backward:
        out.backward()
    return [(m.bytes, m.calls) for m in (forward, backward)]


def main() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        one, other, adapted = (of_a_layer(128, w, dtype, lora) for w, lora in ((256, False), (512, False), (256, True)))
        for way, name in enumerate(("forward", "backward")):
            wide = (other[way][0] - one[way][0]) / 256
            print(
                f"{dtype} {name}: bytes a token: {(one[way][0] - wide * 256) / 128:.1f} x the hidden size + {wide:.1f} x the MLP's + "
                f"{(adapted[way][0] - one[way][0]) / 128:.1f} x the hidden size of an adapter; operations a layer: {one[way][1]} + "
                f"{adapted[way][1] - one[way][1]}"
            )
    n, v = 64, 4096
    states, head = torch.ones(n, 8, requires_grad=True), torch.ones(v, 8)
    for name, weight, keep in (
        ("frozen", head, 0),
        ("trained, kept", head.clone().requires_grad_(), 2**30),
        ("trained, made again", head.clone().requires_grad_(), 0),
    ):
        with Elsewhere() as forward:
            logps, _ = head_logps(states, weight, torch.zeros(n, dtype=torch.long), keep_bytes=keep)
        with Elsewhere() as backward:
            logps.sum().backward()
        print(
            f"head, {name}: vocabulary x {forward.bytes / n / v:.1f} bytes forward, {backward.bytes / n / v:.1f} backward"
        )
    with Elsewhere() as sampler, torch.no_grad():
        logp = torch.log_softmax(torch.ones(n, v).float() / 1.0, dim=-1)
        inverse_transform(logp.exp(), torch.full((n,), 0.5))
    print(f"sampler: vocabulary x {sampler.bytes / n / v:.1f} bytes, {sampler.calls} operations")


if __name__ == "__main__":
    main()
