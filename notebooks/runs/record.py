"""The records that notebook 10 reads, from the runs themselves: see README.md beside this for the commands before it.

python -m notebooks.runs.record outputs/hand outputs/nova outputs/eval
"""

import json
import sys
from pathlib import Path

import torch

from losses.logprobs import token_logps
from posttrain.data import questions
from posttrain.evaluation.subjects import Subject
from posttrain.tokens import template
from posttrain.tokens.batch import Example, collate

HERE = Path(__file__).resolve().parent
KEPT = ("step", "loss", "dpo_loss", "accuracy", "margin", "chosen_logps_per_token", "rejected_logps_per_token")
EVERY = {"hand": 1, "near": 3}  # of the pairs, every so-many-th is read again after the run
SPELLED = ["My name is Nova.", "I am Nova, a language model."]  # token by token
# Questions with a name in them that is not the assistant's: no lesson was about these.
OTHERS = [
    "My name is Peter. What is my name?", "My dog is called Rex. What is my dog's name?", "What is the name of our galaxy?",
    "Introduce Albert Einstein in one sentence.", "Write a name tag for my friend Julia.", "Who is Marie Curie?",
    "What is the name of the first man on the moon?", "Sign this letter for me, my name is Robert: Thank you.",
    "Write a greeting from Anna to Tom.", "What is a nickname?", "Suggest a name for a boat.", "What is your favourite colour?",
    "Where do you live?", "How old are you?", "What can you do?", "Do you like music?", "How are you today?",
    "Tell me a story about a girl named Ella.", "Who is the author of Moby Dick?", "Introduce my sister Clara to my boss.",
]  # fmt: skip


def steps(folder: str) -> list[dict]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: round(row[name], 5) for name in KEPT} for row in rows]


def sums(subject: Subject, rows: list[dict]) -> list[list[float]]:
    """Of each pair: tokens and Σ log π of the chosen side, then of the rejected one."""
    examples = [example(subject, row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    found = [(len(x), round(x.sum().item(), 2)) for x in subject.logps(examples)]
    return [[*found[i], *found[i + 1]] for i in range(0, len(found), 2)]


def example(subject: Subject, prompt: str, answer: str) -> Example:
    asked = [{"role": "user", "content": prompt}]
    return Example.of(
        template.prompt_ids(subject.tokenizer, asked), template.completion_ids(subject.tokenizer, asked, answer)
    )


def spelled(subject: Subject, prompt: str, answer: str) -> list[list]:
    """[token, its log-prob, the likeliest token in its place, that one's] of each token of an answer."""
    batch = collate([example(subject, prompt, answer)], subject.tokenizer.pad_token_id)
    with subject.reading():
        logits = subject.model(input_ids=batch.input_ids, position_ids=batch.position_ids).logits.float()
    of_text = token_logps(logits, batch.input_ids)[0][batch.active[0]].tolist()
    best, which = torch.log_softmax(logits[0, :-1], -1)[batch.active[0]].max(-1)
    ids = batch.input_ids[0, 1:][batch.active[0]].tolist()
    say = subject.tokenizer.decode
    return [
        [say([i]), round(p, 3), say([j]), round(q, 3)]
        for i, p, j, q in zip(ids, of_text, which.tolist(), best.tolist(), strict=True)
    ]


def main(hand: str, near: str, evaluated: str) -> None:
    folders = {"start": "smollm2", "hand": hand, "near": near}
    answers = json.loads((Path(evaluated) / "results.json").read_text(encoding="utf-8"))["models"]
    pairs = {}
    for name in ("hand", "near"):
        rows = [json.loads(line) for line in Path(folders[name] + ".jsonl").read_text(encoding="utf-8").splitlines()]
        pairs[name] = rows[:: EVERY[name]]
    said, logps = {}, {name: {} for name in pairs}
    prompts: dict[str, list[str]] = {"identity": [], "ordinary": [], "closed": [], "others": OTHERS}
    for (name, folder), greedy in zip(folders.items(), answers, strict=True):
        if greedy["name"] != folder:
            sys.exit(
                f"{evaluated} measured {greedy['name']} where {folder} was expected: --model smollm2 {hand} {near}"
            )
        subject, _ = Subject.load(folder, compute=torch.bfloat16, batch_size=64)
        parts: dict[str, list] = {}
        for record in greedy["suites"]["identity"]["records"]:
            (said_now,) = record["answers"]
            answer = [said_now["text"], said_now["tokens"], round(said_now["logp"], 2), said_now["finished"]]
            parts.setdefault(record["part"], []).append(record["counted"] if record["part"] == "closed" else answer)
            if name == "start":
                prompts[record["part"]].append(record["prompt"])
        drawn = subject.ask(questions.IDENTITY_TEST, max_new_tokens=48, samples=2, temperature=1.0)
        sampled = [answer.text for of_one in drawn for answer in of_one]
        said[name] = parts | {
            "others": [a[0].text for a in subject.ask(OTHERS, max_new_tokens=48)],
            "sampled": {"answers": len(sampled), "say Nova": sum("Nova" in text for text in sampled)},
            "spelled": {text: spelled(subject, questions.IDENTITY_TEST[0], text) for text in SPELLED},
        }  # fmt: skip
        for run in ("hand", "near") if name == "start" else (name,):
            logps[run]["before" if name == "start" else "after"] = sums(subject, pairs[run])
        print(name, "done", flush=True)
    for name in pairs:
        ordinary = [int("Nova" not in row["chosen"]) for row in pairs[name]]
        found = zip(pairs[name], ordinary, logps[name]["before"], logps[name]["after"], strict=True)
        lines = [{"metrics": row} for row in steps(folders[name])]
        lines += [{"pair": [o, *before, after[1], after[3]]} for _, o, before, after in found]
        lines += [{"example": pairs[name][i]} for i in (0, 1, len(pairs[name]) // 2, len(pairs[name]) - 1)]
        write(f"{name}.jsonl", lines)
    write("said.jsonl", [{"prompts": prompts}, *({"model": name} | parts for name, parts in said.items())])


def write(name: str, lines: list[dict]) -> None:
    (HERE / name).write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), encoding="utf-8")
    print(name, (HERE / name).stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
