import json
import math
from functools import partial

import pytest
import torch
from kit import CHATML, bytelevel_tokenizer, run_loop, small_config, tiny_folder
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from loops import sft
from posttrain import ROOT
from posttrain.config import load
from posttrain.errors import NonFiniteError, UserError
from posttrain.models import load as load_model

ROWS = [
    {"prompt": f"What is {i} + {i}?", "completion": f"It is {2 * i}." + " Yes, it is." * (i % 3)} for i in range(1, 6)
]
config, run = partial(small_config, "sft"), partial(run_loop, sft, rows=ROWS)


def gradients_of_each_step():
    """Record every gradient at every optimizer.step()."""
    seen = []

    def hook(optimizer, args, kwargs):
        seen.append([p.grad.clone() for g in optimizer.param_groups for p in g["params"]])

    return seen, register_optimizer_step_pre_hook(hook)


def run_with_gradients(model, place, **changes):
    seen, handle = gradients_of_each_step()
    try:
        return run(model, place, **changes), seen
    finally:
        handle.remove()


@pytest.mark.parametrize("length_weighting", ["token", "sequence"])
def test_step_equivalence(tmp_path, llama, length_weighting):
    """One batch of 4, two of 2, four of 1: the same loss and the same gradients to 1e-6."""
    runs = [
        run_with_gradients(llama, tmp_path, training__micro_batch_size=m, sft__length_weighting=length_weighting)
        for m in (4, 2, 1)
    ]
    (whole, grads) = runs[0]
    assert len(whole.metrics) == len(grads) == 2  # 5 rows: a window of 4 and a short one of 1
    for other, other_grads in runs[1:]:
        assert [m["loss"] for m in other.metrics] == pytest.approx([m["loss"] for m in whole.metrics], abs=1e-6)
        for a, b in zip(grads[0], other_grads[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length_weighting", ["token", "sequence"])
def test_dft_is_each_tokens_loss_times_its_own_probability(tmp_path, llama, length_weighting):
    """A smaller loss than the NLL of the same first step, which is logged as before; cut as one likes."""
    more = {"sft__length_weighting": length_weighting}
    plain, whole, apart = (
        run(llama, tmp_path, **more, **how)
        for how in ({}, {"sft__loss": "dft"}, {"sft__loss": "dft", "training__micro_batch_size": 1})
    )
    assert whole.metrics[0]["nll"] == pytest.approx(plain.metrics[0]["nll"], abs=1e-6)
    assert 0 < whole.metrics[0]["loss"] < 0.37 < plain.metrics[0]["loss"]  # −p log p ≤ 1/e = 0.367879
    for name in ("loss", "grad_norm"):
        assert apart.metrics[0][name] == pytest.approx(whole.metrics[0][name], abs=2e-6)


def test_five_micro_batches_accumulation_two_are_three_steps(tmp_path, llama):
    result, seen = run_with_gradients(
        llama,
        tmp_path,
        training__batch_size=2,
        training__micro_batch_size=1,
        training__schedule="linear",
        training__learning_rate=0.3e-3,
    )
    assert len(seen) == len(result.metrics) == 3
    # linear over 3 steps: lr · (3 − k) / 3
    assert [m["learning_rate"] for m in result.metrics] == pytest.approx([0.3e-3, 0.2e-3, 0.1e-3])


def test_a_short_last_window_is_divided_by_its_own_tokens(tmp_path, llama):
    """The loss of every step is the mean NLL of its own tokens, also where the window is short."""
    result = run(llama, tmp_path, training__batch_size=2, training__micro_batch_size=1)
    assert [m["loss"] for m in result.metrics] == pytest.approx([m["nll"] for m in result.metrics], abs=1e-5)


def test_rows_that_do_not_fit_are_dropped_and_counted(tmp_path, llama, capfd):
    rows = [*ROWS, {"prompt": "word " * 100, "completion": "x"}]
    run(llama, tmp_path, rows=rows, data__max_length=80)
    assert "dropped 1 (16.7%): longer than data.max_length = 80 tokens" in capfd.readouterr().err


def test_nothing_left_to_train_on_is_refused(tmp_path, llama):
    with pytest.raises(UserError, match="nothing is left to train on"):
        run(llama, tmp_path, data__max_length=2)


def test_a_template_that_shows_no_reply_names_the_row(tmp_path):
    blind = bytelevel_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(UserError, match="rows, row 1: the chat template does not show"):
        run(tiny_folder(tmp_path / "blind", tokenizer=blind), tmp_path)


def test_a_nan_stops_the_run_with_the_weights_untouched(tmp_path, llama, monkeypatch):
    before = torch.cat([p.flatten() for p in load_model(llama)[0].parameters()])
    seen = {}
    real, prepare = sft.completion_cross_entropy, sft.Run.prepare

    def remember(run, policy, *others):
        seen["policy"] = policy
        return prepare(run, policy, *others)

    def poisoned(logps, weights):
        loss, metrics = real(logps, weights)
        seen["calls"] = seen.get("calls", 0) + 1
        return loss * math.nan, metrics

    monkeypatch.setattr(sft, "completion_cross_entropy", poisoned)
    monkeypatch.setattr(sft.Run, "prepare", remember)
    with pytest.raises(NonFiniteError, match="step 1: the loss is nan"):
        run(llama, tmp_path)
    after = torch.cat([p.detach().flatten() for p in seen["policy"].parameters()])
    assert torch.equal(before, after)
    assert not (tmp_path / "run" / "model").exists()


def test_stopping_is_learned_with_pad_equal_to_eos(tmp_path):
    """8 rows of two lengths overfitted; greedy output stops by itself 8 times out of 8, the saved model knows how."""
    tokenizer = bytelevel_tokenizer(CHATML, pad="<|im_end|>")
    name = tiny_folder(tmp_path / "m", tokenizer=tokenizer)
    rows = [{"prompt": f"Say {i}.", "completion": f"{i}" + " and more" * (i % 2)} for i in range(8)]
    result = run(
        name,
        tmp_path,
        rows=rows,
        training__batch_size=8,
        training__epochs=60,
        training__learning_rate=5e-3,
        output__samples=8,
    )
    saved = result.folder / "model"
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained(saved).eos_token_id
    model, tok = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    for row in rows:
        ids = tok.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**ids, max_new_tokens=30, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert out[-1] == tok.eos_token_id and tok.decode(out, skip_special_tokens=True) == row["completion"]
    samples = (result.folder / "samples.md").read_text()
    assert samples.count("after:") == 8 and samples.count("⏹`") >= 8


def test_every_trainable_tensor_moves_and_the_saved_model_gives_the_same_logits(tmp_path, llama):
    before = dict(load_model(llama)[0].named_parameters())
    result = run(llama, tmp_path, training__max_steps=2)
    for name, p in result.model.named_parameters():
        assert not torch.equal(p, before[name]), name
    saved = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    ids = torch.arange(20, 40)[None]
    torch.testing.assert_close(saved(ids).logits, result.model.eval()(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_checkpointing_gives_the_same_gradients(tmp_path, kind, adapter):
    """GPT-2 with its dropout left on in SFT (the random state is restored for the second forward)."""
    name = tiny_folder(tmp_path / kind, kind)
    off, on = (
        run_with_gradients(
            name, tmp_path, model__adapter=adapter, model__gradient_checkpointing=c, training__max_steps=1
        )[1][0]
        for c in (False, True)
    )
    for a, b in zip(off, on, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("micro", [1, 4])
def test_packing_changes_the_layout_and_nothing_else(tmp_path, llama, micro):
    apart, grads = run_with_gradients(llama, tmp_path)
    packed, packed_grads = run_with_gradients(
        llama, tmp_path, training__packing=True, data__max_length=120, training__micro_batch_size=micro
    )
    assert [m["loss"] for m in packed.metrics] == pytest.approx([m["loss"] for m in apart.metrics], abs=1e-5)
    for a, b in zip(grads[0], packed_grads[0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- rows that are too long


LONG = {"prompt": "word " * 40, "completion": "yes"}


def test_more_than_a_few_long_rows_are_an_error_and_nothing_is_written(tmp_path, llama):
    rows = [*ROWS, LONG, LONG]
    with pytest.raises(
        UserError,
        match=r"2 of 7 rows \(28.6%\) are longer than data.max_length = 80 tokens: raise data.max_length .*, or set",
    ):
        run(llama, tmp_path, rows=rows, data__max_length=80)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        UserError, match=r"rows, row 6: longer than data.max_length = 80 tokens \(\d+\): raise data.max_length"
    ):
        run(llama, tmp_path, rows=rows, data__max_length=80, data__overlong="error")


def test_long_prompts_may_be_cut_instead(tmp_path, llama, capfd):
    run(llama, tmp_path, rows=[*ROWS, LONG, LONG], data__max_length=80, data__overlong="truncate_prompt")
    assert "cut the beginning of 2 prompts of rows longer than data.max_length = 80" in capfd.readouterr().err


# ---------------------------------------------------------------- more of the data keys, through the loop


def test_only_the_last_answer(tmp_path, llama):
    chat = [
        {"role": r, "content": c}
        for r, c in zip(["user", "assistant"] * 2, ["Hello.", "A1", "Name?", "A2"], strict=True)
    ]
    every, last = (
        run(llama, tmp_path, rows=[{"messages": chat}] * 4, data__train_on=on).metrics[0]["loss"]
        for on in ("all", "last")
    )
    alone = run(llama, tmp_path, rows=[{"prompt": chat[:3], "completion": "A2"}] * 4).metrics[0]["loss"]
    assert last == pytest.approx(alone, abs=1e-6) and every != pytest.approx(last, abs=1e-3)


def test_a_stream_trains_and_needs_to_know_when_to_stop(tmp_path, llama):
    data = {
        "data__name": str(ROOT / "tests/data/chats.jsonl"),
        "data__streaming": True,
        "data__overlong": "truncate_prompt",
    }
    result = run(llama, tmp_path, rows=None, training__max_steps=5, output__samples=2, **data)
    assert len(result.metrics) == 5  # 10 rows, 4 a step: 2½ passes
    assert "What is a" in (result.folder / "samples.md").read_text()
    again = run(llama, tmp_path, rows=None, training__max_steps=5, **data)
    assert [m["loss"] for m in again.metrics] == [m["loss"] for m in result.metrics]
    with pytest.raises(UserError, match=r"data.streaming needs training.max_steps"):
        config(llama, tmp_path, **data)


def test_a_mix_of_sources_says_what_it_read(tmp_path, llama, capfd):
    names = [str(ROOT / "tests/data" / n) for n in ("chats.jsonl", "sharegpt.json", "alpaca.jsonl")]
    run(llama, tmp_path, rows=None, data__name=names, data__weights=[2, 1, 1], training__max_steps=1)
    err = capfd.readouterr().err
    # 10 chats are the 2 of 2 : 1 : 1, so 5 each of the others
    assert all(
        f"{n} rows as {what} from" in err
        for n, what in ((10, "conversations (messages)"), (5, "ShareGPT conversations"), (5, "instructions (Alpaca)"))
    )


# ---------------------------------------------------------------- new tokens


def test_new_tokens_get_rows_in_full_fine_tuning_and_are_refused_under_lora(tmp_path, capfd):
    for kind, tied in (("llama", False), ("gpt2", True)):
        tokenizer = bytelevel_tokenizer()
        name = tiny_folder(tmp_path / kind, kind, tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>", "<|newer|>"]})
        tokenizer.save_pretrained(name)
        result = run(name, tmp_path)
        assert "2 tokens of the tokenizer had no embedding" in capfd.readouterr().err
        saved = AutoModelForCausalLM.from_pretrained(result.folder / "model")
        assert saved.get_input_embeddings().weight.shape[0] == len(tokenizer)
        with pytest.raises(UserError, match="LoRA freezes the embeddings") as error:
            run(name, tmp_path, model__adapter="lora")
        assert ("tied to the output head" in str(error.value)) == tied


def test_validation_loss_is_a_mean_over_tokens(tmp_path, llama):
    result = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1, training__micro_batch_size=1)
    whole = run(llama, tmp_path, data__validation_split=0.4, training__eval_every=1, training__micro_batch_size=8)
    assert result.metrics[-1]["validation_loss"] == pytest.approx(whole.metrics[-1]["validation_loss"], abs=1e-5)


@pytest.mark.draws
def test_the_run_folder_and_that_a_finished_run_is_not_overwritten(tmp_path, llama):
    result = run(llama, tmp_path)
    assert {p.name for p in result.folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "curves.png",
        "samples.md",
        "model",
        "written.json",
    } - (set() if (result.folder / "samples.md").exists() else {"samples.md"})
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.metrics and lines[-1]["step"] == 2
    assert (tmp_path / "run/curves.png").stat().st_size > 10_000
    assert load(result.folder / "config.yaml").training.batch_size == 4
    with pytest.raises(UserError, match="holds a finished run"):
        run(llama, tmp_path, output__overwrite=False)


def test_bf16_autocast_keeps_float32_weights(tmp_path, llama):
    result = run(llama, tmp_path, model__dtype="bfloat16")
    reference = run(llama, tmp_path)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert result.metrics[0]["loss"] == pytest.approx(reference.metrics[0]["loss"], abs=0.05)
    assert result.metrics[0]["loss"] != reference.metrics[0]["loss"]


def test_a_generation_config_that_the_library_refuses_to_save_does_not_cost_the_model(tmp_path):
    """Llama-2's shipped one had temperature and top_p beside do_sample=False."""
    path = tmp_path / "m"
    name = tiny_folder(path)
    shipped = json.loads((path / "generation_config.json").read_text()) | {
        "temperature": 0.6,
        "top_p": 0.9,
        "do_sample": False,
    }
    (path / "generation_config.json").write_text(json.dumps(shipped))
    result = run(name, tmp_path)
    saved = GenerationConfig.from_pretrained(result.folder / "model")
    assert saved.temperature == 0.6 and saved.do_sample and saved.eos_token_id


def test_plain_text_and_a_tokenizer_without_template(tmp_path, capfd):
    name = tiny_folder(tmp_path / "bare", tokenizer=bytelevel_tokenizer(None, pad=None, eos="</s>"))
    run(name, tmp_path, rows=[{"text": "the quick brown fox"}, {"text": "jumps over the lazy dog"}])
    err = capfd.readouterr().err
    assert "plain text, trained whole" in err and "no pad token" in err
    run(name, tmp_path)
    assert "using ChatML" in capfd.readouterr().err


def test_eight_bit_adamw(tmp_path, llama):
    result = run(llama, tmp_path, training__optimizer="adamw_8bit")
    assert math.isfinite(result.metrics[-1]["loss"])


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"model.name 'no/such-model': cannot be loaded"):
        run("no/such-model", tmp_path)
