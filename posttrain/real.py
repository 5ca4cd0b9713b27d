"""Three lessons on a real model, SmolLM2-135M: SFT, DPO, and GRPO from the first one's model, on two cores, no GPU.

    python -m posttrain.real --config configs/real.yaml               (make real)
    python -m posttrain.real --config configs/real.yaml --resume      goes on after a kill, between lessons and in one

1. As it comes: it is measured on held-out questions. It talks, but solves hardly a sum, and hardly ever says its name.
2. SFT: sums, answered by two annotators. One writes down every step, one answers at once, and it copies both habits.
   What it would have said to ordinary questions is learned beside them, or they would be gone.
3. DPO: another name. Both sides of each pair are its own words; the chosen one it said when shown who it is to be.
4. GRPO: rewarded for right sums only, it finds out by itself that writing down the steps pays.
5. After each lesson: the same held-out questions, one row of the table. At the end: report.md and lessons.png.

Each is seen by itself, GRPO against the model that it began with; loops.ladder climbs from one to the next.
Left out: full fine-tuning (each lesson trains a LoRA adapter), a search over settings.
"""

from posttrain.config import early_check

# A wrong command line fails here, before torch is imported.
config = early_check("real") if __name__ == "__main__" else None

from pathlib import Path
from typing import Any

import torch

from loops import dpo, grpo, sft
from posttrain.config import RealConfig
from posttrain.config.loading import flat
from posttrain.config.loading import save as save_config
from posttrain.config.stages import stage_config
from posttrain.data import questions, worked
from posttrain.data.files import write_rows
from posttrain.errors import UserError, clear_exit, writing
from posttrain.evaluation import lessons, lessons_report, measuring
from posttrain.evaluation import results as files
from posttrain.evaluation.results import Results
from posttrain.evaluation.subjects import Subject
from posttrain.rollouts import identity
from posttrain.run import checkpoint_files, launch, written
from posttrain.run.folder import refuse_strangers
from posttrain.run.training import left_as_found

MEASURED, SUMS, PAIRS, ORDINARY = "results.json", "sums.jsonl", "pairs.jsonl", "ordinary.jsonl"
FILES = ("config.yaml", MEASURED, SUMS, PAIRS, ORDINARY, "report.md", "lessons.png")
LESSONS = {"sft": sft, "dpo": dpo, "grpo": grpo}


@left_as_found()
def run(config: RealConfig) -> Results:
    folder, real = config.folder, config.real
    results, how = begin(config), how_to_load(config)

    # ---- 1. As it comes -------------------------------------------------------------------------------------------
    subject, notes = Subject.load(real.model, **how)
    print("\n".join([*notes, lessons_report.estimate(subject, done=len(results.models))]), flush=True)
    if not (folder / ORDINARY).exists():
        write_rows(str(folder / ORDINARY), lessons.ordinary_rows(subject))
    chosen = lessons.options(real, folder / ORDINARY)
    suites = measuring.prepare(chosen)
    if not results.models:
        results.options = {name: options.model_dump(mode="json") for name, options in chosen.items()}
        subject.name = "as it comes"
        keep(folder, results, measuring.measure(subject, suites))
    del subject  # each lesson loads its own

    # ---- 2. to 4. The lessons: SFT and DPO from the model as it comes, GRPO from SFT's ----------------------------
    for number, (name, loop) in enumerate(LESSONS.items(), start=1):
        start = str(folder / "sft" / "model") if name == "grpo" else real.model
        stage = stage_config(config, name, start, rows_for(name, config, start) | going_on(config, folder / name))
        if not (folder / name / "model").exists():
            loop.train(stage)

        # ---- 5. The same held-out questions -----------------------------------------------------------------------
        if len(results.models) == number:
            subject, _ = Subject.load(str(folder / name / "model"), **how)  # the adapter merged: as the others get it
            subject.name = name
            keep(folder, results, measuring.measure(subject, suites))
            del subject

    metrics = {name: lessons.metrics_of(folder / name) for name in LESSONS}
    minutes = {name: lessons.seconds_of(rows) / 60 for name, rows in metrics.items()}
    print("\n" + lessons_report.table(results, minutes))
    with writing(folder):
        lessons_report.write(folder, config, results, metrics, minutes)
    print(f"\nread {folder}/report.md, look at {folder}/lessons.png")
    return results


def rows_for(name: str, config: RealConfig, start: str) -> dict[str, Any]:
    """What a lesson learns from, made once: the keys that name it."""
    real, folder = config.real, config.folder
    if name == "sft":
        if not (folder / SUMS).exists():
            rows = worked.rows(real.task | {"size": real.sums, "seed": real.seed}, bare=real.bare, seed=real.seed)
            if real.keep:
                subject, _ = Subject.load(start, **how_to_load(config))
                asking = identity.Asking(subject.model, subject.tokenizer, 1, 0.7, max_new_tokens=64, seed=real.seed)
                rows += identity.own_answers(asking, questions.ORDINARY, real.keep).rows
            write_rows(str(folder / SUMS), rows)
        return {"data.name": str(folder / SUMS)}
    if name == "dpo":
        if not (folder / PAIRS).exists():
            told = identity.identity(
                start, [real.old_name], real.new_name, str(folder / PAIRS), chosen="shown", ordinary=real.keep,
                samples=real.pairs, temperature=0.7, max_new_tokens=64, seed=real.seed,
            )  # fmt: skip
            print(told, flush=True)
        return {"data.name": str(folder / PAIRS)}
    return {"data.name": worked.TASK, "data.task": real.task | {"size": 1000, "seed": real.seed + 1}}


def how_to_load(config: RealConfig) -> dict[str, Any]:
    """For measuring: on the device and in the compute type of the lessons."""
    lesson = stage_config(config, "sft", config.real.model)
    on_cpu = lesson.training.device == "cpu" or not torch.cuda.is_available()
    compute = launch.compute_dtype(lesson.model, on_cpu)
    return {"device": "cpu" if on_cpu else "cuda", "compute": compute, "batch_size": 64, "seed": config.real.seed}


# ---------------------------------------------------------------- the folder, and going on in it


def begin(config: RealConfig) -> Results:
    """What has been measured so far; nothing finished, and nothing begun, is overwritten unasked."""
    folder, settings = config.folder, flat(config.real.model_dump(mode="json"))
    refuse_strangers(folder, names=FILES)
    for name in LESSONS:
        refuse_strangers(folder / name)
    if config.resume and config.output.overwrite:
        raise UserError("--resume goes on with what is there, --output.overwrite replaces it: give one of the two")
    if checkpoint_files.latest(folder) is not None or (folder / "model").exists():
        raise UserError(f"{folder} holds a run of another loop: give another --output.dir")
    before = files.read(str(folder)) if (folder / MEASURED).exists() else None
    if before is not None and not config.resume and not config.output.overwrite:
        raise UserError(
            f"{folder} holds {len(before.models)} of {1 + len(LESSONS)} measurements: give --resume to go on, "
            "--output.overwrite to begin again, or another --output.dir"
        )
    if before is not None and config.resume:
        told = before.about.get("real", {})
        if other := [key for key in {**told, **settings} if told.get(key) != settings.get(key)]:
            raise UserError(
                f"--resume: {folder} was begun with another real.{other[0]}: give that, or another --output.dir"
            )
        return before
    with writing(folder):
        for name in FILES:
            written.remove(folder, name)
        for name in LESSONS:  # or an older run's lesson would count as finished
            for part in ("model", "checkpoints"):
                written.remove(folder / name, part)
        written.note(folder, *FILES, *(f"{name}.part" for name in (MEASURED, SUMS, PAIRS, ORDINARY)))
        save_config(config, folder / "config.yaml")
    how = how_to_load(config)
    dtype = str(how["compute"]).removeprefix("torch.")
    about = measuring.about(how["device"], dtype, how["batch_size"], how["seed"])
    results = Results(about | {"real": settings}, {})
    files.write(folder, results)
    return results


def going_on(config: RealConfig, folder: Path) -> dict[str, Any]:
    """The keys that make a lesson go on from its own checkpoint."""
    there = config.resume and checkpoint_files.latest(folder) is not None
    return {"resume": True, "output.overwrite": False} if there else {}


def keep(folder: Path, results: Results, measured: files.Measured) -> None:
    """Measured once, it is not measured again."""
    results.models.append(measured)
    files.write(folder, results)
    print(lessons_report.line(measured), flush=True)


if __name__ == "__main__":
    with clear_exit():
        run(config)
