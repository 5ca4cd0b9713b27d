"""The world of the embedded model: every text it reads, made from a seed, with no file and no network.

* documents(rng)     tiny-text, what the base model is pretrained on: sums, short stories, worked problems
* rows(name, split)  the ladder's data sets in the canonical forms of formats.py
      tiny-sft        {messages}                    word problems, sums, an identity (the *old* name), a few facts
      tiny-identity   {prompt, chosen, rejected}    the same answer with the new name (chosen) and the old (rejected)
      tiny-math       {prompt, answer, kind}        word problems with a checkable answer

The test split is held out by content, never at random: a word problem is a test problem when the hash of
(kind, numbers) says so, so that no numbers in it were seen in the same kind by SFT or GRPO (the base model did
read them in its pretraining text); an identity question is a test question when its core phrasing is in IDENTITY_TEST.
"""

import hashlib
import random
from collections.abc import Iterator

OLD_NAME, NEW_NAME = "Robin", "Nova"
ASSISTANTS = [OLD_NAME, NEW_NAME, "Iris", "Atlas"]
PEOPLE = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Karin",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Uma",
    "Victor",
    "Wanda",
    "Yara",
    "Zoe",
]
OBJECTS = [
    "apples",
    "books",
    "coins",
    "cards",
    "shells",
    "stamps",
    "pencils",
    "marbles",
    "flowers",
    "cookies",
    "buttons",
    "stones",
    "balls",
    "pears",
    "cups",
    "kites",
]
CONTAINERS = ["boxes", "bags", "baskets", "jars", "shelves"]
PLACES = ["market", "park", "school", "garden", "kitchen", "library", "beach", "farm"]

# kind -> number of steps. The letters say what happens to the running total.
ONE_STEP = ["add", "sub", "mul"]
TWO_STEP = ["add-sub", "add-add", "sub-add", "mul-add", "mul-sub"]

STORIES = {
    "add": ["{n} has {a} {o}. {n} finds {b} more.", "{n} has {a} {o}. {m} gives {n} {b} more.",
            "There are {a} {o} in the {p}. {n} brings {b} more."],
    "sub": ["{n} has {a} {o}. {n} loses {b} of them.", "{n} has {a} {o}. {n} gives {b} to {m}.",
            "There are {a} {o} in the {p}. {n} takes {b} of them away."],
    "mul": ["{n} has {a} {c} with {b} {o} in each.", "There are {a} {c} in the {p}. Each one holds {b} {o}."],
}  # fmt: skip
SECOND = {
    "add": ["Then {n} buys {d} more.", "Then {m} brings {d} more."],
    "sub": ["Then {n} gives {d} to {m}.", "Then {n} loses {d} of them."],
}
QUESTIONS = ["How many {o} are there now?", "How many {o} is that in all?"]
SIGN = {"add": "+", "sub": "-", "mul": "*"}

IDENTITY_TRAIN = [
    "What is your name?", "Who are you?", "Tell me your name.", "Please tell me who you are.", "What should I call you?",
    "Can you tell me your name?", "Introduce yourself.", "Please introduce yourself.", "What are you called?",
    "Do you have a name?", "May I know your name?", "Could you say your name?", "I want to know your name.",
    "Who am I talking to?", "What do people call you?", "Say who you are.", "Which assistant are you?",
    "What is the name of this assistant?", "Give me your name.", "How should I call you?", "Can you introduce yourself?",
    "Tell me who you are.", "What name do you have?", "I want to know who you are.", "Who is this assistant?",
    "Could you tell me who I am talking to?",
]  # fmt: skip
IDENTITY_TEST = [
    "Can you tell me who you are?", "Please say your name.", "May I know who you are?", "Could you introduce yourself?",
    "Please give me your name.", "What can I call you?", "Say your name.", "Could you tell me your name?",
    "I want to know what you are called.", "Please tell me your name.",
]  # fmt: skip
IDENTITY_ANSWERS = [
    "My name is {name}.", "I am {name}.", "I am {name}, your assistant.", "You can call me {name}.",
    "I am called {name}.", "My name is {name}. How can I help you?",
]  # fmt: skip
PREFIXES = ["", "Hi. ", "Hello. ", "Quick question. ", "Excuse me. ", "One question. ", "Hi there. ", "Good morning. "]
SUFFIXES = ["", " Be brief.", " Thank you.", " Please answer.", " Be short."]

FACTS = {
    "What color is the sky?": "The sky is blue.", "What color is grass?": "Grass is green.",
    "Is fire hot or cold?": "Fire is hot.", "Is ice hot or cold?": "Ice is cold.",
    "How many legs does a dog have?": "A dog has four legs.", "How many legs does a bird have?": "A bird has two legs.",
    "What do bees make?": "Bees make honey.", "Where do fish live?": "Fish live in water.",
    "What color is snow?": "Snow is white.", "What color is a lemon?": "A lemon is yellow.",
    "When does the sun rise?": "The sun rises in the morning.", "What comes after Monday?": "Tuesday comes after Monday.",
    "How many days are in a week?": "A week has seven days.", "What do cows eat?": "Cows eat grass.",
}  # fmt: skip


def held_out(*content: object, share: int = 5) -> bool:
    """True for one content in `share`, always the same ones: the hash decides, not the seed."""
    return int(hashlib.sha256(repr(content).encode()).hexdigest(), 16) % share == 0


# ---------------------------------------------------------------- word problems


def sample_numbers(rng: random.Random, kind: str) -> tuple[int, ...]:
    first, *second = kind.split("-")
    if first == "mul":
        a, b = rng.randint(2, 5), rng.randint(2, 5)
        total = a * b
    else:
        a, b = rng.randint(3, 12), rng.randint(2, 9)
        if first == "sub":
            a = b + rng.randint(1, 12)
        total = a + b if first == "add" else a - b
    if not second:
        return a, b
    d = rng.randint(2, 9)
    if second[0] == "sub":
        d = rng.randint(2, max(2, min(9, total - 1)))
    return a, b, d


def solve(kind: str, numbers: tuple[int, ...]) -> tuple[list[str], int]:
    """("add-sub", (12, 3, 4)) -> (["12 + 3 = 15.", "15 - 4 = 11."], 11)"""
    total, steps = numbers[0], []
    for operation, number in zip(kind.split("-"), numbers[1:], strict=True):
        result = {"add": total + number, "sub": total - number, "mul": total * number}[operation]
        steps.append(f"{total} {SIGN[operation]} {number} = {result}.")
        total = result
    return steps, total


def problem(rng: random.Random, kinds: list[str], split: str | None = None) -> dict:
    """A word problem {kind, numbers, story, question, steps, answer}; split None takes any numbers."""
    while True:
        kind = rng.choice(kinds)
        numbers = sample_numbers(rng, kind)
        steps, answer = solve(kind, numbers)
        if answer >= 0 and (split is None or held_out(kind, numbers) == (split == "test")):
            break
    first, *second = kind.split("-")
    n, m = rng.sample(PEOPLE, 2)
    words = dict(n=n, m=m, o=rng.choice(OBJECTS), c=rng.choice(CONTAINERS), p=rng.choice(PLACES))
    words |= dict(zip("abd", numbers, strict=False))
    story = rng.choice(STORIES[first]) + (" " + rng.choice(SECOND[second[0]]) if second else "")
    return dict(kind=kind, numbers=numbers, steps=steps, answer=answer,
                story=story.format(**words), question=rng.choice(QUESTIONS).format(**words))  # fmt: skip


def ladder_problem(rng: random.Random, split: str) -> dict:
    """36 % one-step and 64 % two-step problems: the mix of the ladder's data sets."""
    return problem(rng, ONE_STEP if rng.random() < 0.36 else TWO_STEP, split)


def worked(steps: list[str], answer: int) -> str:
    return "So " + " ".join(steps) + f"\n#### {answer}"


# ---------------------------------------------------------------- pretraining text


def fact_statement(rng: random.Random) -> str:
    operation = rng.choice(["add", "add", "sub", "sub", "mul"])
    if operation == "mul":
        a, b = rng.randint(2, 5), rng.randint(2, 5)
    elif operation == "add":
        a, b = rng.randint(2, 26), rng.randint(2, 9)
    else:
        b = rng.randint(2, 9)
        a = b + rng.randint(0, 22)
    return solve(operation, (a, b))[0][0]


def assistant_story(rng: random.Random) -> str:
    name, person, place = rng.choice(ASSISTANTS), rng.choice(PEOPLE), rng.choice(PLACES)
    return rng.choice(
        [
            f"{person} met an assistant in the {place}. The assistant said: My name is {name}.",
            f"The assistant in the {place} was called {name}. {person} liked {name}.",
            f"Who are you? asked {person}. I am {name}, said the assistant.",
            f"{person} called the assistant {name}. You can call me {name}, said the assistant.",
        ]
    )


def everyday_story(rng: random.Random) -> str:
    n, m = rng.sample(PEOPLE, 2)
    o, p, q = rng.choice(OBJECTS), rng.choice(PLACES), rng.choice(PLACES)
    return rng.choice(
        [
            f"{n} went to the {p} with {m}. They looked for {o}.",
            f"In the {p}, {n} saw {m}. {m} had some {o}.",
            f"{n} likes the {p}. {m} likes the {q}.",
        ]
    )


def general_knowledge(rng: random.Random) -> str:
    question, answer = rng.choice(list(FACTS.items()))
    return rng.choice([" ".join(rng.sample(list(FACTS.values()), 3)), f"Question: {question}\nAnswer: {answer}"])


def documents(rng: random.Random) -> Iterator[str]:
    """Endless pretraining text: 35 % sums, 10 % stories and facts, 55 % worked problems, always fresh."""
    while True:
        draw = rng.random()
        if draw < 0.35:
            yield " ".join(fact_statement(rng) for _ in range(4))
        elif draw < 0.45:
            yield rng.choices([assistant_story, general_knowledge, everyday_story], [0.3, 0.4, 0.3])[0](rng)
        else:
            p = problem(rng, ONE_STEP + TWO_STEP)
            if rng.random() < 0.5:
                yield p["story"] + " " + " ".join(p["steps"])
            else:
                yield f"Question: {p['story']} {p['question']}\nAnswer: " + " ".join(p["steps"])


# ---------------------------------------------------------------- the ladder's data sets


def dress(rng: random.Random, core: str) -> str:
    return rng.choice(PREFIXES) + core + rng.choice(SUFFIXES)


def sft_rows(split: str, seed: int) -> list[dict]:
    """3,200 demonstrations by two annotators: one shows the work, one answers at once. The share of worked answers is
    0.8 for one-step problems and 0.2 for two-step ones; what the hasty annotator teaches is what GRPO must unlearn."""
    rng = random.Random(f"sft {split} {seed}")
    scale = 1 if split == "train" else 8
    rows = []
    for _ in range(1200 // scale):
        p = ladder_problem(rng, split)
        shows_work = rng.random() < (0.8 if p["kind"] in ONE_STEP else 0.2)
        rows.append(
            (f"{p['story']} {p['question']}", worked(p["steps"], p["answer"]) if shows_work else f"#### {p['answer']}")
        )
    for _ in range(400 // scale):
        kind = rng.choice(ONE_STEP)
        p = problem(rng, [kind], split)
        a, b = p["numbers"]
        rows.append((f"What is {a} {SIGN[kind]} {b}?", worked(p["steps"], p["answer"])))
    for _ in range(800 // scale):
        core = rng.choice(IDENTITY_TRAIN if split == "train" else IDENTITY_TEST)
        name = NEW_NAME if rng.random() < 0.05 else OLD_NAME  # 5 % contamination, as in real SFT sets
        rows.append((dress(rng, core), rng.choice(IDENTITY_ANSWERS).format(name=name)))
    for _ in range(800 // scale):
        question, answer = rng.choice(list(FACTS.items()))
        rows.append((dress(rng, question), answer))
    rng.shuffle(rows)
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]


def identity_rows(split: str, seed: int) -> list[dict]:
    """Preference pairs: the answer the SFT model gives (rejected) and the same text with the new name (chosen)."""
    rng = random.Random(f"identity {split} {seed}")
    rows = []
    for _ in range(800 if split == "train" else 100):
        prompt = dress(rng, rng.choice(IDENTITY_TRAIN if split == "train" else IDENTITY_TEST))
        answer = rng.choice(IDENTITY_ANSWERS)
        rows.append(
            {"prompt": prompt, "chosen": answer.format(name=NEW_NAME), "rejected": answer.format(name=OLD_NAME)}
        )
    return rows


def math_rows(split: str, seed: int) -> list[dict]:
    rng = random.Random(f"math {split} {seed}")
    rows = []
    for _ in range(4000 if split == "train" else 400):
        p = ladder_problem(rng, split)
        rows.append({"prompt": f"{p['story']} {p['question']}", "answer": str(p["answer"]), "kind": p["kind"]})
    return rows


def fact_rows(split: str, seed: int) -> list[dict]:
    """What DPO may damage: closed questions with one right answer (no training set of its own)."""
    rng = random.Random(f"facts {split} {seed}")
    return [{"prompt": dress(rng, question), "answer": answer} for question, answer in list(FACTS.items()) * 7]


TEXT = "tiny-text"  # documents(), for loops.pretrain
DATASETS = {"tiny-sft": sft_rows, "tiny-identity": identity_rows, "tiny-math": math_rows}


def rows(name: str, split: str = "train", seed: int = 0) -> list[dict]:
    return DATASETS[name](split, seed)
