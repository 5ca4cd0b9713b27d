"""The first batch as the loop will see it: the same rows, weights and log-probs that the loop's first step is made of."""

import math

import pytest
import torch
from kit import bytelevel_tokenizer, sentencepiece_tokenizer, small_config, tiny_folder

from loops import dpo, grpo, kto, sft, simpo
from posttrain import ROOT, inspect_batch

SFT = [{"prompt": f"What is {i}?", "completion": "It is " + "so " * i + "."} for i in range(6)]
PAIRS = [{"prompt": f"Q{i}?", "chosen": f"Yes {i}.", "rejected": "No." * (i + 1)} for i in range(6)]
PROMPTS = [{"prompt": f"Question {i}?", "answer": "3"} for i in range(4)]


@pytest.mark.parametrize("packing", [False, True])
def test_sft_sums_to_the_loss_of_the_first_step(tmp_path, llama, packing):
    """Σ w · (−log π) over the batch is the loss that the run logs at step 1."""
    c = small_config("sft", llama, tmp_path, training__packing=packing)
    seen = inspect_batch.inspect(c, SFT)
    loss = -(seen.weights * seen.logps).sum().item()
    assert loss == pytest.approx(sft.train(c, rows=SFT).metrics[0]["loss"], abs=1e-5)
    assert seen.weights.sum().item() == pytest.approx(1, abs=1e-6)
    kinds = [inspect_batch.kinds(seen, row) for row in range(len(seen.batch))]
    pads = sum(k.count("padding") for k in kinds)
    assert pads == seen.batch.input_ids.numel() - sum(seen.lengths) and (pads > 0) is not packing
    assert not (tmp_path / "run" / "inspect").exists() and "6 rows as prompt + completion" in seen.lines[0]


def test_dpo_is_the_first_window_and_policy_equals_reference(tmp_path, llama):
    c = small_config("dpo", llama, tmp_path, model__adapter="lora", dpo__sft_weight=1.0)
    seen = inspect_batch.inspect(c, PAIRS)
    torch.testing.assert_close(seen.logps, seen.ref_logps)
    assert seen.names == [f"{side} {i}" for side in ("chosen", "rejected") for i in (1, 2, 3, 4)]
    assert seen.weights is None and seen.counts.startswith("a pair counts 1/4 of the step")
    n_chosen = seen.batch.active[:4].sum().item()
    assert f"each chosen token counts 1/{n_chosen} in the NLL" in seen.counts
    metrics = dpo.train(c, rows=PAIRS).metrics[0]
    chosen = seen.batch.active[:4]
    per_token = (seen.logps[:4].sum() / chosen.sum()).item()
    assert per_token == pytest.approx(metrics["chosen_logps_per_token"], abs=1e-5)
    assert metrics["dpo_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_reward_shows_scores_that_start_at_0(tmp_path, llama):
    seen = inspect_batch.inspect(small_config("reward", llama, tmp_path, training__batch_size=6), PAIRS)
    assert seen.logps is None and seen.scores == [0.0] * 12


def test_grpo_samples_the_rollout_that_the_loop_will_sample(tmp_path, llama):
    c = small_config("grpo", llama, tmp_path, grpo__max_new_tokens=5)
    seen = inspect_batch.inspect(c, PROMPTS)
    metrics = grpo.train(c, rows=PROMPTS).metrics[0]
    lengths = seen.batch.completion_mask.sum(1)
    assert lengths.float().mean().item() == pytest.approx(metrics["completion_length"])
    assert all(name.startswith("reward 0, advantage +0.00") for name in seen.names) and len(seen.names) == 8


def test_what_is_shown(tmp_path, llama, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hello.", "completion": "My name is Nova."}\n')
    page = tmp_path / "pages" / "batch.html"
    inspect_batch.main(
        [
            "--config",
            str(ROOT / "configs/sft_tiny.yaml"),
            "--model.name",
            llama,
            "--data.name",
            str(rows),
            "--html",
            str(page),
        ]
    )
    out = capsys.readouterr().out
    assert "1 row as prompt + completion" in out and "learned: 'My name is Nova.<|im_end|>'" in out
    assert (
        "token weighting, total 7" in out.replace("\n", " ") and "'<|im_end|>'" in out and "completion (learned)" in out
    )
    html = page.read_text()
    assert "My name is Nova." in html and "<span" in html


def test_tokens_that_look_like_markup_are_shown_as_they_are(tmp_path, capsys):
    """'[/INST]' would be a closing tag to rich, and '[i]' would vanish."""
    mistral = tiny_folder(tmp_path / "m", tokenizer=with_tokens(sentencepiece_tokenizer(), ["[i]", "[/b]"]))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hello.", "completion": "a [i] b [/b] c"}\n')
    inspect_batch.main(
        ["--config", str(ROOT / "configs/sft_tiny.yaml"), "--model.name", mistral, "--data.name", str(rows)]
    )
    out = capsys.readouterr().out
    assert "' [i]'" in out and "' [/b]'" in out


def with_tokens(tokenizer, tokens):
    tokenizer.add_tokens(tokens)
    return tokenizer


def test_ppo_says_what_counts_for_an_answer_that_was_cut_off(tmp_path, llama):
    cut = {"ppo__prompts_per_step": 4, "ppo__max_new_tokens": 4, "ppo__minibatches": 1, "ppo__truncation_penalty": -1.0}
    c = small_config("ppo", llama, tmp_path, **cut)
    seen = inspect_batch.inspect(c, PROMPTS)
    assert any(name.endswith("cut off (-1 counts instead of it)") for name in seen.names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "3"], "the following arguments are required: --config"),
        (["--config", str(ROOT / "configs/ladder_tiny.yaml")], "not of loops.ladder"),
        (
            ["--config", str(ROOT / "configs/sft_tiny.yaml"), "--rows", "many"],
            "argument --rows: invalid int value: 'many'",
        ),
        (["--config", str(ROOT / "configs/sft_tiny.yaml"), "--data.nmae", "x"], "did you mean 'name'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        inspect_batch.main(arguments)
    assert message in f"{stopped.value}{capsys.readouterr().err}"


def test_the_text_of_the_tokens_is_the_text():
    for tokenizer in (sentencepiece_tokenizer(), bytelevel_tokenizer()):
        ids = tokenizer("the quick brown fox", add_special_tokens=False)["input_ids"]
        assert len(ids) > 3 and "".join(inspect_batch._pieces(tokenizer, ids)).strip() == "the quick brown fox"


KTO = [{"prompt": f"Q{i}?", "completion": f"Yes {i}.", "label": i % 2 == 0} for i in range(6)]


def test_kto_and_simpo_are_the_first_window(tmp_path, llama):
    c = small_config("kto", llama, tmp_path)
    seen = inspect_batch.inspect(c, KTO)
    torch.testing.assert_close(seen.logps, seen.ref_logps)
    assert sorted(set(seen.names)) == ["judged bad", "judged good"] and seen.counts.startswith("a row counts 1/4 of")
    good = torch.tensor([name == "judged good" for name in seen.names])[:, None] & seen.batch.active
    first = kto.train(c, rows=KTO).metrics[0]
    assert (seen.logps[good].sum() / good.sum()).item() == pytest.approx(first["chosen_logps_per_token"], abs=1e-5)
    c = small_config("simpo", llama, tmp_path, simpo__loss="orpo")
    seen = inspect_batch.inspect(c, PAIRS)
    chosen = seen.batch.active[:4]
    assert f"each chosen token counts 1/{chosen.sum().item()} in the NLL" in seen.counts and seen.ref_logps is None
    first = simpo.train(c, rows=PAIRS).metrics[0]
    assert (seen.logps[:4].sum() / chosen.sum()).item() == pytest.approx(first["chosen_logps_per_token"], abs=1e-5)


def test_a_teachers_advantages_and_prompts_that_are_to_be_answered(tmp_path, llama):
    taught = {"advantage": "teacher", "teacher": llama, "reward": None, "advantage_scale": "none", "kl_coef": 0.0}
    seen = inspect_batch.inspect(
        small_config("grpo", llama, tmp_path, **{f"grpo__{k}": v for k, v in taught.items()}), PROMPTS
    )
    assert all(name.startswith(("mean advantage +0.00", "mean advantage -0.00")) for name in seen.names)
    c = small_config("distill", llama, tmp_path, distill__teacher=llama, distill__on_policy=1)
    seen = inspect_batch.inspect(c, PROMPTS)
    assert set(seen.names) == {"row, in whose place the student's own answer stands"}
    assert seen.weights.sum() == 0 and not seen.batch.active.any()


def test_distill_shows_the_given_answers_and_who_is_asked(tmp_path, llama):
    c = small_config("distill", llama, tmp_path, distill__teacher=llama, distill__on_policy=0.5)
    seen = inspect_batch.inspect(c, SFT)
    assert sorted(set(seen.names)) == ["row", "row, in whose place the student's own answer stands"]
    assert seen.weights.sum().item() == pytest.approx(1, abs=1e-6) and (seen.logps[seen.batch.active] < 0).all()
