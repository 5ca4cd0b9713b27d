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


def test_a_share_of_the_prompts_has_the_answers_that_it_has_among_all():
    """Two processes, the second of which asks prompt 1 alone: with its own draws, not with those of prompt 0."""
    tokenizer = bytelevel_tokenizer()
    m = tiny_model("llama", len(tokenizer)).eval()
    prompts = [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
    for temperature in (0.0, 1.0):
        settings = {"max_new_tokens": 6, "group_size": 2, "temperature": temperature}
        every = ask(m, tokenizer, prompts, **settings)
        shares = [ask(m, tokenizer, prompts, **settings, own=own) for own in ([0, 2], [1])]
        assert shares[0].completion_ids == every.completion_ids[:2] + every.completion_ids[4:]
        assert shares[1].completion_ids == every.completion_ids[2:4]
    assert ask(m, tokenizer, prompts, **settings, own=[]).completion_ids == []
