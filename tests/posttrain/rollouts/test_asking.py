from kit import bytelevel_tokenizer, tiny_model

from posttrain.evaluation.ladder_report import markdown_table
from posttrain.rollouts.asking import ask
from posttrain.run.curves import plot_curves


def test_answers_do_not_depend_on_the_batch_size():
    tokenizer = bytelevel_tokenizer()
    m = tiny_model("llama", len(tokenizer)).eval()
    prompts = [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
    for temperature in (0.0, 1.0):
        one, many = (
            ask(m, tokenizer, prompts, max_new_tokens=6, group_size=2, temperature=temperature, batch_size=b)
            for b in (1, 8)
        )
        assert one.completion_ids == many.completion_ids and one.finished == many.finished


def test_curves_and_tables(tmp_path):
    plot_curves(tmp_path / "curves.png", [{"step": i, "loss": 1 / i, "reward": i} for i in range(1, 4)], "grpo")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
