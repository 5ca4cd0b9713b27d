"""Chat templates of the kinds that real models bring: thoughts that the question opens or closes, and tools."""


def chatml(
    answer: str, generation: str = "", head: str = "", role: str = "m['role']", said: str = "{{ m['content'] }}"
) -> str:
    """ChatML with its own way to write an answer, and something behind the generation prompt."""
    return (
        head + "{% for m in messages %}<|im_start|>{{ " + role + " }}\n{% if m['role'] == 'assistant' %}" + answer + "{% else %}" + said
        + "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n" + generation + "{% endif %}"
    )  # fmt: skip


SHOWN = (
    "{% set thoughts = m.get('reasoning_content') %}{% set said = m['content'] %}"
    "{% if not thoughts and '</think>' in said %}"
    "{% set thoughts = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<think>\n{{ thoughts or '' }}\n</think>\n\n{{ said }}"
)
# The question opens the thoughts (Qwen3.5, Nemotron); every answer shows its own, if only an empty block.
OPENS = chatml(SHOWN, "<think>\n")
# The question closes them (Qwen3.5 without thinking), and an answer that brings some shows them all the same.
CLOSED = chatml(SHOWN, "<think>\n\n</think>\n\n")
# The question opens them and answers are written without (DeepSeek-R1).
FORGETS = chatml("{{ m['content'].split('</think>')[-1] }}", "<think>\n")
# The question says nothing, the answer has a block of its own; a switch closes it beforehand (Qwen3).
SWITCHED = chatml(
    SHOWN, "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
# Thoughts only from their field, in a block that the question opens (Qwen3.8).
FIELD = chatml("<think>\n{{ m.get('reasoning_content', '') }}\n</think>\n\n{{ m['content'] }}", "<think>\n")
# Tools in a system message, calls as JSON in the answer, what they gave as a user's message (Qwen2.5).
CALLS = "{% for c in m.get('tool_calls') or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
TOOLS = chatml(
    "{{ m['content'] }}" + CALLS,
    head="{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}",
    role="'user' if m['role'] == 'tool' else m['role']",
)
