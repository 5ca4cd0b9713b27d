"""The counting of a run: which rows make which step, what a step's line says, and what stops it. (That a resumed run is
the same to the bit: tests/loops/test_resume.py.)"""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from kit import bytelevel_tokenizer, small_config
from torch import nn

from posttrain.errors import NonFiniteError, UserError
from posttrain.run import folder, training
from posttrain.run.training import Run, left_as_found
from posttrain.tokens.batch import Example

ROWS = [Example.of([0], [i] * (1 + i % 3)) for i in range(1, 6)]  # five rows, each known by its last token


class Model(nn.Module):
    """One weight, in the shape of a language model."""

    def __init__(self):
        super().__init__()
        self.embedding, self.weight = nn.Embedding(400, 1), nn.Parameter(torch.zeros(()))
        self.embedding.requires_grad_(False)

    def get_input_embeddings(self):
        return self.embedding


def run_of(tmp_path, method="sft", steps=None, **changes):
    """A run that has been set up, of a model with one weight; `steps`: prepared, for so many."""
    run = Run(small_config(method, "x", tmp_path, preflight__stop_token=False, **changes))
    if steps is None:
        return run
    model = Model()
    run.prepare(model, model, bytelevel_tokenizer(), steps, save=lambda *told: (tmp_path / "run/model.part").mkdir())
    return run


@pytest.fixture(autouse=True)
def lock(tmp_path):
    """A run that is not finished keeps its folder's lock: give it back."""
    with left_as_found():
        yield
    folder.unlock(tmp_path / "run")


def tokens(micro_batches):
    return [[example.input_ids[-1] for example in micro] for micro in micro_batches]


# ---------------------------------------------------------------- which rows make a step


def test_how_many_steps(tmp_path):
    run = run_of(tmp_path, training__batch_size=2, training__epochs=3)
    assert run.steps_for(ROWS) == 3 * 3  # windows of 2, 2 and 1
    assert run_of(tmp_path, training__max_steps=4).steps_for(ROWS) == 4


def test_every_row_once_an_epoch_and_a_short_last_window(tmp_path):
    run = run_of(tmp_path, training__batch_size=2, training__micro_batch_size=1, steps=6)
    windows = [tokens(window) for window in run.windows(ROWS)]
    assert [len(window) for window in windows] == [2, 2, 1, 2, 2, 1]
    epochs = [[row for window in part for micro in window for row in micro] for part in (windows[:3], windows[3:])]
    assert [sorted(rows) for rows in epochs] == [[1, 2, 3, 4, 5]] * 2 and epochs[0] != epochs[1]
    run.num_steps = 4  # in the middle of an epoch
    assert [tokens(window) for window in run.windows(ROWS)] == windows[:4]


def test_a_resumed_run_passes_over_what_it_had_done(tmp_path):
    run = run_of(tmp_path, training__batch_size=2, steps=6)
    windows = [tokens(window) for window in run.windows(ROWS)]
    run.step = 4
    assert [tokens(window) for window in run.windows(ROWS)] == windows[4:] and len(windows[4:]) == 2


def test_slices_are_all_items_once(tmp_path):
    run = run_of(tmp_path, training__micro_batch_size=2)
    sizes = [len(micro) for micro in run.slices(ROWS)]
    assert sizes == [2, 2, 1] and sorted(row for micro in tokens(run.slices(ROWS)) for row in micro) == [1, 2, 3, 4, 5]


# ---------------------------------------------------------------- RL: prompts and minibatches


def test_how_many_steps_of_rl(tmp_path):
    rl = {"grpo__minibatches": 2, "grpo__inner_epochs": 3}
    run = run_of(tmp_path, "grpo", training__max_steps=None, training__epochs=2, **rl)
    # 7 prompts, 2 a rollout: 3 rollouts a pass, each 2 × 3 updates
    assert run.steps_for_prompts(list(range(7)), run.config.grpo) == 2 * 3 * 6
    assert run.steps_for_prompts([0], run.config.grpo) == 2 * 1 * 6  # fewer prompts than a rollout has
    assert run_of(tmp_path, "grpo", training__max_steps=5).steps_for_prompts([0], run.config.grpo) == 5


def rollouts(run, prompts, per_step, count):
    """The first rollouts, one update each."""
    out = []
    for number, asked, own in run.prompt_windows(prompts, per_step):
        out.append((number, asked, own))
        if len(out) == count:
            break
    return out


def test_whole_rollouts_only_and_a_short_one_is_left_for_the_next_epoch(tmp_path):
    run = run_of(tmp_path, "grpo", steps=100)
    found = rollouts(run, list(range(7)), 2, 6)
    assert [number for number, *_ in found] == [0, 1, 2, 3, 4, 5] and all(own == [0, 1] for *_, own in found)
    epochs = [[p for _, asked, _ in part for p in asked] for part in (found[:3], found[3:])]
    assert all(len(set(prompts)) == 6 for prompts in epochs) and epochs[0] != epochs[1]
    run.rollout = 4  # resumed in the middle of the fifth
    assert rollouts(run, list(range(7)), 2, 2) == found[4:]
    run.step = run.num_steps
    assert rollouts(run, list(range(7)), 2, 1) == []


def test_fewer_prompts_than_a_rollout_has(tmp_path, capsys):
    run = run_of(tmp_path, "grpo", steps=9)
    assert sorted(rollouts(run, [7, 8, 9], 5, 1)[0][1]) == [7, 8, 9]
    assert "only 3 prompts: a rollout has 3, not prompts_per_step = 5" in capsys.readouterr().err
    stream = SimpleNamespace(epoch=lambda number: iter([1, 2, 3]))
    with pytest.raises(UserError, match=r"the stream has fewer prompts than grpo.prompts_per_step = 5"):
        rollouts(run, stream, 5, 1)


def test_the_updates_of_a_rollout_and_where_a_resumed_run_goes_on(tmp_path):
    run = run_of(tmp_path, "grpo", training__micro_batch_size=3, grpo__minibatches=2, grpo__inner_epochs=2, steps=50)
    answers = [Example.of([0], [i]) for i in range(8)]  # two prompts, four answers each
    updates = [tokens(update) for update in run.minibatches(answers, [0, 1], 2, run.config.grpo)]
    assert [[len(micro) for micro in update] for update in updates] == [[3, 1]] * 4
    passes = [[row for update in part for micro in update for row in micro] for part in (updates[:2], updates[2:])]
    assert [sorted(rows) for rows in passes] == [list(range(8))] * 2 and run.update == 4
    run.update = 3
    assert [tokens(update) for update in run.minibatches(answers, [0, 1], 2, run.config.grpo)] == updates[3:]
    run.update, run.step = 0, 50
    assert list(run.minibatches(answers, [0, 1], 2, run.config.grpo)) == []


def test_what_a_checkpoint_in_a_rollout_needs(tmp_path):
    state = run_of(tmp_path, "grpo").rollout_state(list("abcdef"), [4, 2], {"reward": (torch.tensor(3.0), 6)})
    assert state == {"answers": {4: list("abc"), 2: list("def")}, "metrics": {"reward": (3.0, 6.0)}}


# ---------------------------------------------------------------- a step


def test_a_step_is_one_line(tmp_path):
    run = run_of(tmp_path, steps=2)
    run.add(torch.tensor(0.5), {"accuracy": (1, 2)}, terms={"nll": torch.tensor(0.25)}, tokens=30)
    run.add(torch.tensor(0.25), {"accuracy": (1, 2)}, tokens=10)
    run.model.weight.grad = torch.tensor(1.0)
    run.check_update(torch.tensor(2.0))
    row = run.log({"grad_norm": torch.tensor(2.0)}, {"reward": (3.0, 4)})
    expected = {
        "step": 1,
        "loss": 0.75,
        "nll": 0.25,
        "accuracy": 0.5,
        "reward": 0.75,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["tokens_per_second"] > 0 and row["seconds"] > 0 and row["memory_gib"] > 0
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == row == run.metrics[0] and run.step == 1


def test_tokens_per_second_is_of_this_step(tmp_path, monkeypatch):
    run = run_of(tmp_path, steps=2)
    run.last, run.started, run._learning_rate = 98.0, 90.0, 1e-3
    for now, expected in ((100.0, 10.0), (104.0, 5.0)):  # 20 tokens in 2 s, then in 4 s
        monkeypatch.setattr(training.time, "perf_counter", lambda now=now: now)
        run.add(torch.tensor(0.0), {}, tokens=20)
        assert run.log({})["tokens_per_second"] == expected
    assert [row["seconds"] for row in run.metrics] == [10.0, 14.0]


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.5, math.nan), (0.5, math.inf)])
def test_what_is_not_finite_stops_the_run(tmp_path, loss, norm):
    run = run_of(tmp_path, steps=2)
    run.add(torch.tensor(loss), {})
    with pytest.raises(
        NonFiniteError, match=rf"step 1: the loss is {loss} and the gradient norm {norm}: stopped before"
    ):
        run.check_update(torch.tensor(norm))


def test_a_warning_is_said_once(tmp_path, capsys):
    run = run_of(tmp_path, "grpo", steps=30)
    for _ in range(14):
        run.add(torch.tensor(0.0), {"kl_k1": (-1.0, 1)})
        run.model.weight.grad, run._learning_rate = torch.tensor(1.0), 1e-3
        run.log({})
    assert capsys.readouterr().err.count("warning, step 10: ") == 1


def test_when_it_is_evaluated(tmp_path):
    run = run_of(tmp_path, data__validation_split=0.2, training__eval_every=2, steps=5)
    asked = []
    for run.step in range(5):
        asked.append(run.evaluate_now())
    assert asked == [False, True, False, True, True]  # after steps 2, 4 and the last
    assert not run_of(tmp_path).evaluate_now()


def test_schedule_and_parts_with_their_own_rate(tmp_path):
    run = run_of(tmp_path, training__warmup_steps=1, training__schedule="constant")
    model = Model()
    more = {"learning_rates": {"weight": 5e-3}, "save": None}
    _, optimizer, scheduler = run.prepare(model, model, bytelevel_tokenizer(), 2, **more)
    # warm-up over one step: ½, then the peak; only the one weight is trained, at its own rate
    rates = []
    for _ in range(2):
        rates.append([group["lr"] for group in optimizer.param_groups if group["params"]])
        optimizer.step()
        scheduler.step()
    assert rates == [[2.5e-3], [5e-3]]


# ---------------------------------------------------------------- beginning and end


@pytest.mark.draws
def test_the_folder_is_finished_when_the_model_has_its_name(tmp_path, capsys):
    run = run_of(tmp_path, steps=1)
    run.add(torch.tensor(0.5), {})
    run._learning_rate = 1e-3
    run.log({})
    result = run.finish([("Who?", "a", "b")])
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"config.yaml", "metrics.jsonl", "curves.png", "samples.md", "model", "written.json"}
    assert (result.model, result.folder, len(result.metrics)) == (run.model, tmp_path / "run", 1)
    err = capsys.readouterr().err
    assert "training 1 of 401 parameters for 1 step in float32 on 1 x cpu" in err and "sft: 1 step in " in err
    assert f"wrote {tmp_path / 'run'}/: config.yaml, curves.png, metrics.jsonl, model/, samples.md, written.json" in err


def test_gradients_are_sent_around_on_the_last_micro_batch(tmp_path):
    run, waiting = run_of(tmp_path), []
    run.accelerator = SimpleNamespace(no_sync=lambda policy: waiting.append(policy) or contextlib.nullcontext())
    spread = SimpleNamespace(
        set_requires_gradient_sync=None
    )  # FSDP2: after each (tests/posttrain/models/two_shares.py)
    for index in range(3):
        for policy in ("whole", spread):
            with run.no_sync_unless_last(policy, index, [0, 1, 2]):
                pass
    assert waiting == ["whole", "whole"]


def test_a_small_model_is_trained_on_one_thread_and_the_caller_gets_theirs_back(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with left_as_found():
            run_of(tmp_path, steps=1)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with left_as_found():
            folder.unlock(tmp_path / "run")
            run_of(tmp_path, training__cpu_threads=3, steps=1)
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
