from kit import bytelevel_tokenizer, tiny_model

from posttrain.rollouts.asking import ask


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
