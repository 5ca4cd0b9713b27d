# %% [markdown]
# # 11 · Measuring
#
# What can a model do, and how surely? `python -m posttrain.evaluate` prints a share, an interval and a verdict. Here is
# where the three come from, and seven ways to fool oneself without them. Where a probability can be counted it is
# counted, by enumeration; two models are really evaluated; the judge of section 7 alone is made up.
#
# **What you need:** the README's set-up, the embedded models (`make demo` builds them, else the first run does), half a
# minute. Open it with `make jupyter`, or run `python notebooks/11_measuring.py`, which needs no Jupyter (its pictures
# go to `outputs/notebooks/`).

# %%
import os
import sys

if not os.path.isdir("losses"):
    os.chdir("..")  # Jupyter begins in notebooks/
sys.path.insert(0, ".")
import math

import matplotlib.pyplot as plt
import numpy
import torch

from notebooks import show
from posttrain.config.suites import Accuracy, Identity, Perplexity
from posttrain.evaluation import intervals, judge, judging, scores
from posttrain.evaluation.comparing import difference
from posttrain.evaluation.intervals import mcnemar, paired_difference, pass_at_k, wilson
from posttrain.evaluation.measuring import evaluate

torch.set_num_threads(1)


def binomial(n, p):
    """[n + 1]: how probable 0, 1, … n right answers are, each right with probability p."""
    k = numpy.arange(n + 1)
    return numpy.array([float(math.comb(n, i)) for i in k]) * p**k * (1 - p) ** (n - k)


# %% [markdown]
# ## 1 · What does 21 of 50 say?
#
# The interval that everybody knows is p̂ ± 1.96 √(p̂(1 − p̂)/n). The one in use here is Wilson's: all p that would not
# be astonished by what was seen. **Predict:** 0 of 50 were right. What does the naive interval say, and may the next
# fifty hold one that is?

# %%


def naive(hits, n):
    p = hits / n
    spread = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - spread, p + spread


show.table(
    ["right", "share", "naive", "Wilson"],
    [
        (f"{hits} of {n}", hits / n, *("{:.3f} to {:.3f}".format(*of(hits, n)) for of in (naive, wilson)))
        for hits, n in ((21, 50), (50, 50), (0, 50), (168, 400))
    ],
)

# %% [markdown]
# At 21 of 50 they hardly differ, and both are wide: 0.29 to 0.56. At 50 of 50 the naive one has no width at all. It
# says that a model which was right 50 times can never be wrong.
#
# Does an interval keep its promise? *95 %* means: whatever the true p is, 95 of 100 such samples give an interval with
# p in it. There are only n + 1 possible results, so this can be counted, with the probability of each:

# %%


def coverage(of, n, truths):
    ends = numpy.array([of(hits, n) for hits in range(n + 1)])
    return [binomial(n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum() for p in truths]


truths = numpy.linspace(0.005, 0.995, 199)
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.4), sharey=True)
rows = []
for axis, n in zip(axes, (10, 50, 400), strict=True):
    for name, of in (("naive", naive), ("Wilson", wilson)):
        kept = coverage(of, n, truths)
        axis.plot(truths, kept, lw=1, label=name)
        rows.append((n, name, float(numpy.mean(kept)), *coverage(of, n, (0.01, 0.05, 0.42, 0.95, 0.99))))
    axis.axhline(0.95, color="0.5", ls=":", lw=1)
    axis.set(title=f"n = {n}", xlabel="the true p", ylim=(0.5, 1.01))
axes[0].legend(fontsize=7)
plt.show()
show.table(["n", "", "mean over p", "p = 0.01", "0.05", "0.42", "0.95", "0.99"], rows)

# %% [markdown]
# In the middle both keep it. Near 0 and 1 the naive one does not: with n = 50 and p = 0.99 it misses the truth in six
# of ten cases, because most samples are 50 of 50. That is where one measures most often: "never says the old name",
# "always ends its turn". Wilson's stays near 95 %, with dips next to 0 and 1 on few questions (the deepest here is
# 0.86, at n = 10 and p = 0.015).
#
# ## 2 · Why do 50 examples say little?
#
# Let model B be really better, 52 % against 42 %. How probable is it that it looks *worse* in the test? First with
# different questions for each, then with the same ones, where A alone is right on 10 % and B alone on 20 %.

# %%


def looks_worse(n, a=0.42, b=0.52):
    below = numpy.concatenate([[0], numpy.cumsum(binomial(n, b))[:-1]])  # P(B has fewer than k right)
    return float((binomial(n, a) * below).sum())


lost = [binomial(d, 2 / 3)[: (d + 1) // 2].sum() for d in range(401)]  # d questions told them apart, B won fewer


def looks_worse_on_the_same(n, only_a=0.1, only_b=0.2):
    return float(binomial(n, only_a + only_b) @ lost[: n + 1])


sizes = (10, 25, 50, 100, 200, 400)
show.table(
    ["questions", "different ones", "the same ones"], [(n, looks_worse(n), looks_worse_on_the_same(n)) for n in sizes]
)

# %% [markdown]
# With 50 questions the better model looks worse in 13 % of the tests (7 % on the same questions), and in 18 % it looks
# *twenty* points better or more. With 400 it looks worse in two tests of a thousand.
#
# How many are needed? Not looking worse is not enough: the test is to say "better". The chance that it does is its
# power. It depends on the real gap. Same questions, A alone is right on 10 %, B alone on 10 % and the gap:

# %%


def decides(level=0.05, most=400):
    """[most]: d questions were right in one model only; up to so many of them for the loser, and the test decides."""
    found = []
    for d in range(most):
        fewer = found[-1] if found else -1
        while fewer + 1 <= d // 2 and mcnemar(fewer + 1, d - fewer - 1) < level:
            fewer += 1
        found.append(fewer)
    return found


def power(n, only_a, only_b, fewer):
    """How often the test says that B is better."""
    apart = binomial(n, only_a + only_b)[: len(fewer)]
    a_has = [binomial(d, only_a / (only_a + only_b))[: fewer[d] + 1].sum() for d in range(len(apart))]
    return float(apart @ a_has)


usual = decides()
show.table(
    ["real gap", *(f"n = {n}" for n in (50, 100, 200, 400, 800))],
    [(gap, *(power(n, 0.1, 0.1 + gap, usual) for n in (50, 100, 200, 400, 800))) for gap in (0.02, 0.05, 0.1, 0.2)],
)

# %% [markdown]
# Ten points need some 250 questions to be seen in four of five tests, five points need 800. Half the gap, three to four
# times the questions: the width of an interval goes with 1/√n.
#
# ## 3 · Two models, the same questions
#
# tiny-dpo is tiny-sft after a lesson on its name. Both are asked 100 word problems (greedy, and 8 samples each), 100
# questions about the name, and both read 100 held-out conversations.

# %%
NAMES = ("tiny-sft", "tiny-dpo")
suites = {
    "accuracy": Accuracy(data="tiny-math", max_rows=100, max_new_tokens=28, samples=8),
    "identity": Identity(name="Nova", questions="tiny-identity", max_new_tokens=28),
    "perplexity": Perplexity(data="tiny-sft", max_rows=100),
}
*_, results = evaluate(list(NAMES), suites, device="cpu", batch_size=64)  # it gives them after each model
sft, dpo = results.models
found = {
    (suite, a.name): (a, b)
    for suite in suites
    for a, b in zip(sft.outcomes[suite].scores, dpo.outcomes[suite].scores, strict=True)
}
shown = [
    ("accuracy", "right"),
    ("accuracy", "sampled"),
    ("identity", "new_name"),
    ("identity", "closed"),
    ("perplexity", "perplexity"),
]
show.table(
    ["score", *NAMES, "difference, paired"],
    [(": ".join(key), *found[key], difference(key[0], *found[key], NAMES)) for key in shown],
)

# %% [markdown]
# Look at the perplexity: the two intervals overlap, and still the verdict is *worse*, and sure. No contradiction. The
# intervals are wide because some conversations are hard and some easy, for both models alike. The question is another
# one: on the same conversation, which model is better? What both share drops out of a difference.
#
# For shares the whole of it is a table of four numbers. The first two rows are real. The last two are made up, and in
# both of them 42 and 52 of 100 are right.

# %%


def fourfold(a, b):
    pairs = list(zip(a.items, b.items, strict=True))
    return [pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]


def unpaired(a, b, n):
    """As if A and B had been asked different questions (Newcombe 1998, method 10 without a correlation)."""
    (low_a, high_a), (low_b, high_b) = wilson(a, n), wilson(b, n)
    p, q = a / n, b / n
    return q - p - math.hypot(q - low_b, high_a - p), q - p + math.hypot(high_b - q, p - low_a)


tables = {
    "word problems": fourfold(*found["accuracy", "right"]),
    "the name": fourfold(*found["identity", "new_name"]),
    "made up 1": [40, 2, 12, 46],
    "made up 2": [28, 14, 24, 34],
}
show.table(
    ["", "both right", "only A", "only B", "neither", "B − A, unpaired", "B − A, paired", "McNemar's p"],
    [
        (
            name,
            *cells,
            "{:+.2f} to {:+.2f}".format(*unpaired(cells[0] + cells[1], cells[0] + cells[2], sum(cells))),
            "{:+.2f} to {:+.2f}".format(*paired_difference(*cells)),
            mcnemar(cells[1], cells[2]),
        )
        for name, cells in tables.items()
    ],
)
p = 2 * sum(math.comb(14, i) for i in range(3)) / 2**14
print(f"made up 1: 14 questions tell them apart; 2 · (1 + 14 + 91) / 2^14 = {p:.4f}")

# %% [markdown]
# McNemar's test looks only at the questions that one model alone got right. If the two were equally good, each of them
# would be a coin toss. 2 against 12 is no coin; 14 against 24 may well be one. The shares, and the intervals of each
# model alone, are the same in both rows: without the answers question by question nobody can tell the two cases apart.
#
# The first row is *inconclusive*, and that is an answer. The lesson on the name has not changed a single verdict on 100
# problems, and the paired interval says how much can be hidden there: two points. Unpaired it would be thirteen.
# "Inconclusive" with a narrow interval is good news about a side effect; with a wide one it means: ask more questions.
# It never means "equal".
#
# ## 4 · Are eight samples eight questions?
#
# Each problem got 8 sampled answers, 800 in all. Are they 800 items? Here is how many of the 8 were right:

# %%
hits = [record["sampled_right"] for record in sft.outcomes["accuracy"].records]
n = 8
show.table(["right of 8", *map(str, range(n + 1))], [("problems", *(hits.count(i) for i in range(n + 1)))])
flat = [1.0 if i < h else 0.0 for h in hits for i in range(n)]
forgets = intervals.percentiles(intervals.bootstrap([flat], [[1.0] * len(flat)])[:, 0])
knows = intervals.percentiles(intervals.bootstrap([hits], [[n] * len(hits)])[:, 0])
factor = (knows[1] - knows[0]) / (forgets[1] - forgets[0])
show.table(
    ["bootstrap over", "share right", "from", "to", "width"],
    [
        (what, sum(flat) / len(flat), low, high, high - low)
        for what, (low, high) in (("800 samples", forgets), ("100 problems", knows))
    ],
)
print(f"too narrow by a factor of {factor:.2f}: 800 samples are worth {len(flat) / factor**2:.0f} independent ones")

# %% [markdown]
# If the samples were independent, 88 of 100 problems would have 1 to 4 right. Here 67 have: some are always wrong, some
# nearly always right, and the second sample of a problem says partly what the first has said. So a *problem* is drawn,
# with all its samples (a cluster). `posttrain.evaluate` does that; the same holds for the tokens of a document, and for
# questions that are one question in several wordings.
#
# ### pass@k
#
# How probable is it that at least one of k samples is right? With n samples of which c are right, 1 − (1 − c/n)^k looks
# obvious, and is too low. Chen et al. 2021 count instead: of all choices of k among the n, how many hold no right one?
# Enumerated over c, for a problem with p = 0.1:

# %%
chances = binomial(n, 0.1)
obvious = {k: [1 - (1 - c / n) ** k for c in range(n + 1)] for k in (1, 2, 4, 8)}
counted = {k: [pass_at_k(n, c, k) for c in range(n + 1)] for k in (1, 2, 4, 8)}
mean_share = sum(hits) / len(flat)
show.table(
    ["k", "truth, p = 0.1", "counted, mean", "obvious, mean", "tiny-sft: counted", "obvious", "from the mean share"],
    [
        (
            k,
            1 - 0.9**k,
            float(chances @ counted[k]),
            float(chances @ obvious[k]),
            float(numpy.mean([counted[k][h] for h in hits])),
            float(numpy.mean([obvious[k][h] for h in hits])),
            1 - (1 - mean_share) ** k,
        )
        for k in obvious
    ],
)

# %% [markdown]
# The counted one is right on average, for every k up to n. The obvious one is too low: a problem with 0 of 8 gets 0,
# and one with more than its share gains less than that, for the curve bends. The last column errs the other way: it
# takes all problems for equally hard.
#
# ## 5 · Is a perplexity a mean?
#
# Two documents: one token that costs 4 nats, and three tokens that cost 1 nat each.

# %%
two = scores.ratio("perplexity", "two documents", [4, 3], [1, 3], "documents", scale="exp")
print(f"sums:          e^((4 + 3) / (1 + 3))     = {two.value:.2f}")
print(f"mean of means: e^((4/1 + 3/3) / 2)       = {math.exp((4 / 1 + 3 / 3) / 2):.2f}")
rows = []
for model in results.models:
    records = model.outcomes["perplexity"].records
    nll, tokens = (numpy.array([record[key] for record in records]) for key in ("nll", "tokens"))
    rows.append(
        (
            model.name, f"{tokens.min()} to {tokens.max()}", math.exp(nll.sum() / tokens.sum()),
            math.exp((nll / tokens).mean()), float(numpy.exp(nll / tokens).mean()),
        )
    )  # fmt: skip
show.table(["", "tokens a document", "sums", "mean of means", "mean of perplexities"], rows)

# %% [markdown]
# One token of four had half of the say. On the real conversations the same: 22 of the 100 answers are a bare number, 3
# or 4 tokens at about 0.9 nats each, and they weigh as much as a worked solution whose tokens cost 0.1. A mean of
# batches has the same fault, and the figure then depends on the batch size. Add up nats, add up tokens, divide once.
#
# ## 6 · How often does nothing look like something?
#
# Twenty comparisons of two models that do not differ at all. How probable is at least one verdict? A test of 5 % errs
# in 5 % of cases, half of them as "better". McNemar's test is exact, and on few questions it errs more rarely (here 100
# questions, each right in one model only with probability 0.2).

# %%
nominal, strict = 0.05, 0.05 / 20
real, real_strict = (2 * power(100, 0.1, 0.1, fewer) for fewer in (usual, decides(strict)))
show.table(
    ["", "one comparison errs", "20: at least one verdict", "20: at least one “better”"],
    [
        (name, error, 1 - (1 - error) ** 20, 1 - (1 - error / 2) ** 20)
        for name, error in (
            ("p < 0.05", nominal),
            ("McNemar, p < 0.05", real),
            ("p < 0.05 / 20", strict),
            ("McNemar, p < 0.05 / 20", real_strict),
        )
    ],
)
seen = [power(100, 0.1, 0.2, fewer) for fewer in (usual, decides(strict))]
print(
    f"ten real points on 100 questions are seen in {seen[0]:.0%} of tests at p < 0.05, in {seen[1]:.0%} at p < 0.05 / 20"
)

# %% [markdown]
# Who tries twenty variants and reports the best one has found a "better" in two of five cases (in one of four with
# McNemar's test here), from nothing. Dividing the level by the number of comparisons (Bonferroni) keeps the error of
# all together below 5 %, and costs power. Two cheaper ways: say before the run which score decides, and try the winner
# again on questions that it has not seen. (The formula takes the comparisons for independent. Those on the same
# questions are less so: they tend to err together.)
#
# ## 7 · What does a judge like?
#
# A judge (a language model, or a reward model) says which of two answers is better. Many like the longer one. A judge
# that is made up shows what that does, for here the truth is known. Its log-odds are the real gap in quality, plus 0.02
# for each character more, plus noise, plus 1 for the first place. Each pair is judged in both orders; two verdicts that
# contradict each other are a tie. `judge.of` makes the scores, as the suite `judge` does.

# %%
rng = numpy.random.default_rng(0)


def judged(quality, longer_by, pairs=1000):
    longer = rng.normal(longer_by, 100, pairs).round()
    odds = quality + 0.02 * longer + rng.logistic(0, 1, pairs)
    verdicts = [judging.of_orders(o + 1, o - 1) for o in odds]  # in the first place, in the second
    return longer, verdicts, {s.name: s for s in judge.of(verdicts, longer.tolist(), "the other", "a made-up judge")}


def at_length_0(quality):
    """What this judge says of answers of equal length: a win in both orders, and half of the ties."""
    return (1 / (1 + math.exp(1 - quality)) + 1 / (1 + math.exp(-1 - quality))) / 2


cases = {"equally good, 80 characters longer": (0, 80), "better, 80 characters shorter": (1, -80)}
made = {name: judged(*case) for name, case in cases.items()}
show.table(
    ["its answers are", "win rate", "at equal length", "the truth there", "ties", "first place"],
    [
        (name, s["win_rate"], s["win_rate_lc"], at_length_0(cases[name][0]), s["ties"].value, s["first_place"].value)
        for name, (_, _, s) in made.items()
    ],
)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
for axis, (name, (longer, verdicts, s)) in zip(axes, made.items(), strict=True):
    won = numpy.array([v.won for v in verdicts])
    bins = [(longer >= left) & (longer < left + 50) for left in range(-300, 300, 50)]
    axis.plot([longer[b].mean() for b in bins if b.sum() > 9], [won[b].mean() for b in bins if b.sum() > 9], "o-", ms=3)
    axis.axhline(s["win_rate"].value, color="C3", ls=":", lw=1)
    axis.plot(0, s["win_rate_lc"].value, "k*", ms=10)
    axis.axvline(0, color="0.5", lw=0.8)
    axis.set(title=name, xlabel="characters longer")
axes[0].set_ylabel("won")
plt.show()

# %% [markdown]
# Dots: the win rate of pairs with about that difference in length. Dotted: of all pairs. The star: a logistic
# regression of the verdicts on the length, read at 0 (as in length-controlled AlpacaEval, arXiv 2404.04475).
#
# The raw win rate makes a winner of a model that only writes more, and a loser of one that is better and brief. At
# equal length both are what they are. A policy that is trained on such a judge's preferences learns to write more; its
# raw win rate then rises for the very reason that the reward did.
#
# Three warnings. Where an answer is better *because* it says more, the control takes that away as well. Where hardly
# any pair has about equal lengths, the number at 0 is the regression's guess, not a measurement. And an interval knows
# nothing of the judge's taste: a thousand pairs make a biased judge precise, not right.
#
# ## Change one line, predict, run
#
# 1. In section 1 add `(0, 300)` to the table. A model was asked 300 times and has never said the old name. How often
#    may it really say it?
# 2. Add `"made up 3": [42, 0, 5, 53]` to the tables of section 3: B wins five questions and loses none. Is it better?
#    And with `[42, 0, 6, 52]`?
# 3. In section 4 let the test set hold every problem ten times: `hits = hits * 10`. What becomes of the interval over
#    problems, and what has been learned?
#
# <details><summary>Answers</summary>
#
# 1. Up to 1.3 %: Wilson's upper end is z²/(n + z²) = 3.84/303.84. The naive interval says never. "Never seen" is a
#    statement about n.
# 2. With five p = 2/2⁵ = 0.0625: inconclusive. With six 2/2⁶ = 0.031: better. Fewer than six questions that tell two
#    models apart can never decide, however many questions there were in all.
# 3. It is narrower by √10 = 3.2, and nothing has been learned: they are still 100 problems. Copies in a test set (the
#    same question in other words, too) do exactly this, and no formula can see it.
#
# </details>
