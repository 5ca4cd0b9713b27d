"""The embedded model's own tokenizer, trained here on the embedded text in a second."""

import random
from itertools import islice

from posttrain.tiny import data

VOCABULARY = 960
STOP, PAD, DOCUMENT = "<|im_end|>", "<|pad|>", "<|endoftext|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build():
    """Byte-level BPE on the project's own text. One token per digit (the first of a number carries the space), so that
    7 is the same 7 in 17 and 70; with the byte alphabet, any text survives the round trip."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\d| ?[^\s\d\p{P}\p{S}]+| ?[\p{P}\p{S}]+|\n|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT, "<|im_start|>", STOP, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = [m["content"] for row in data.rows("tiny-sft") for m in row["messages"]]
    names = [a.format(name=n) for a in data.IDENTITY_ANSWERS for n in data.ASSISTANTS] * 20
    corpus = [
        *islice(data.documents(random.Random(0)), 6000),
        *chats,
        *names,
        *["system\n", "user\n", "assistant\n"] * 50,
    ]
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=STOP, pad_token=PAD, chat_template=CHATML, model_max_length=512
    )
