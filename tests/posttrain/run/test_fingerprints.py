"""Is it the same run? Fingerprints by hand, and what two configs may differ in."""

import numpy
import pytest
import torch
from kit import tiny_model, yaml_config
from torch import nn

from posttrain import models
from posttrain.errors import UserError
from posttrain.run import fingerprints
from posttrain.run.fingerprints import compare, fingerprint, fingerprint_of_functions, fingerprint_of_rows
from posttrain.tokens.batch import Example
from posttrain.tokens.examples import Pair, Prompt


def configs(old=None, new=None, method="sft"):
    """The configs of two runs as a checkpoint keeps them."""
    return [yaml_config(f"{method}_tiny", **changes or {}).model_dump(mode="json") for changes in (old, new)]


def test_what_may_change(tmp_path):
    harmless = {
        "output.samples": 1,
        "tracking.to": "wandb",
        "preflight.rows": False,
        "training.save_every": 3,
        "training.keep_checkpoints": 9,
    }
    assert compare(*configs({}, harmless), tmp_path) == []
    lines = compare(*configs({}, {"training.micro_batch_size": 2, "training.cpu_threads": 4}), tmp_path)
    assert lines == [
        "training.micro_batch_size 16 -> 2: the same steps, rounded otherwise; where there is dropout, with other masks",
        "training.cpu_threads None -> 4: the same steps, rounded otherwise; where there is dropout, with other masks",
    ]
    lines = compare(*configs({}, {"training.device": "auto"}, "dpo"), tmp_path)  # no dropout is left in DPO
    assert lines == ["training.device cpu -> auto: the same steps, rounded otherwise"]


def test_what_makes_another_run(tmp_path):
    changes = {"training.learning_rate": 0.5, "sft.length_weighting": "sequence", "training.micro_batch_size": 2}
    with pytest.raises(UserError) as refused:
        compare(*configs({}, changes), tmp_path / "step_4")
    said = str(refused.value)
    assert said.startswith(
        f"{tmp_path}/step_4 was written with another configuration: training.learning_rate 0.0025 -> 0.5; "
    )
    assert "sft.length_weighting token -> sequence. Going on" in said and "micro_batch_size" not in said
    old, new = configs(method="sft")[0], configs(method="dpo")[0]
    with pytest.raises(
        UserError, match=r"step_4 is of a run of loops.sft, not of loops.dpo: give another --output.dir"
    ):
        compare(old, new, tmp_path / "step_4")


def test_only_a_constant_rate_lets_a_run_be_longer(tmp_path):
    for key in ("training.max_steps", "training.epochs"):
        constant = {"training.schedule": "constant"}
        assert compare(*configs(constant, constant | {key: 9}), tmp_path) == []
        with pytest.raises(UserError, match=rf"{key} \w+ -> 9"):
            compare(*configs({}, {key: 9}), tmp_path)


def test_a_path_however_it_is_written_and_a_list_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert compare(*configs({"model.name": "m"}, {"model.name": str(tmp_path / "m/../m")}), tmp_path) == []
    assert compare(*configs({"data.name": ["a.jsonl"]}, {"data.name": "a.jsonl"}), tmp_path) == []
    with pytest.raises(UserError, match=r"model.name m -> n|model.name .*m -> n"):
        compare(*configs({"model.name": "m"}, {"model.name": "n"}), tmp_path)


def test_fingerprints():
    """Bit patterns times their places, added up: 1.0 is 0x3F800000 = 1065353216, 2.0 is 0x40000000 = 1073741824."""
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, 2.0]])
    expected = fingerprints.hashlib.blake2b(f"weight (1, 2) [{1065353216 + 2 * 1073741824}]\n".encode(), digest_size=8)
    assert fingerprints.fingerprint(module) == expected.hexdigest()
    module.weight.data[0, 1] = 2.0000002384185791  # the next number float32 has
    assert fingerprints.fingerprint(module) != expected.hexdigest()
    module.weight.data = torch.tensor([[2.0, 1.0]])  # the same numbers in other places
    assert fingerprints.fingerprint(module) != expected.hexdigest()
    a, b = Example([1, 2, 3], [False, True, True]), Example([1, 2, 3], [False, False, True])
    of = fingerprints.fingerprint_of_rows
    assert of([a, a]) == of([a, Example([1, 2, 3], [False, True, True])])
    assert len({of([a]), of([b]), of([a, b]), of([b, a]), of([Pair(a, b)]), of([Prompt([1], {"answer": "2"})]), of([Prompt([1], {"answer": "3"})]), of([Pair(b, a)]), of([Prompt([2], {"answer": "3"})])}) == 9  # fmt: skip
    module = nn.Linear(2, 1, bias=False).bfloat16()
    module.weight.data = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)  # 0x3F80 = 16256 and 0x4000 = 16384
    expected = fingerprints.hashlib.blake2b(f"weight (1, 2) [{16256 + 2 * 16384}]\n".encode(), digest_size=8)
    assert fingerprints.fingerprint(module) == expected.hexdigest()


def test_frozen_parameters_buffers_and_the_config_count():
    model = tiny_model()
    before = fingerprint(model)
    assert before == fingerprint(tiny_model())
    model.config.use_cache = not model.config.use_cache  # how it is run, not what it is
    assert fingerprint(model) == before
    model.config.rms_norm_eps = 0.5
    assert fingerprint(model) != before
    model = tiny_model()
    model.lm_head.weight.requires_grad_(False)[3, 4] += 1
    assert fingerprint(model) != before


def test_what_the_weights_were_quantised_by_counts(llama):
    four = models.load(llama, quantization="4bit")[0]
    before = fingerprint(four)
    assert before == fingerprint(models.load(llama, quantization="4bit")[0]) != fingerprint(models.load(llama)[0])
    layer = four.model.layers[0].self_attn.q_proj
    layer.weight.quant_state.absmax.add_(1)
    assert fingerprint(four) != before


def one(completion_ids):
    return [1.0 for _ in completion_ids]


def test_functions_by_their_name_and_source():
    def two(completion_ids):
        return [2.0 for _ in completion_ids]

    of = fingerprint_of_functions
    assert of([one]) == of([one]) and len({of([one]), of([two]), of([one, two]), of([two, one])}) == 4
    named = [of([make(value)]) for value in ("1.0", "2.0")]
    assert named[0] != of([one]) and named[0] == named[1]  # of code without a source there is only the name


def make(value):
    """A function that no file holds."""
    made = {}
    exec(f"def typed_in(completion_ids):\n    return [{value}]", made)
    return made["typed_in"]


def test_rows_with_odd_columns_are_compared_by_what_can_be_compared():
    def of(**columns):
        return fingerprint_of_rows([Prompt([1], columns)])

    odd = {"s": {3, 1}, "a": numpy.array([1, 2]), "t": (1, None, True), 5: "n", "o": object()}
    assert of(odd=odd) == of(odd={**odd, "s": {1, 3}, "o": object()})
    assert len({of(odd=odd), of(odd={**odd, "s": {1}}), of(odd={**odd, "a": numpy.array([1, 3])}), of(odd={**odd, 5: "m"})}) == 4  # fmt: skip
