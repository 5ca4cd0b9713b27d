"""What a run may be told: the keys with their meaning, default and range, read from YAML and the command line.

    config = load("configs/dpo_tiny.yaml", overrides={"dpo.beta": 0.2})
    python -m loops.dpo --config configs/dpo_tiny.yaml --dpo.beta 0.2 --learning-rate 1e-4

On the command line a leaf name that is unique may stand without its group, and dashes are underscores. Unknown keys are
refused, all problems are reported at once, each with where it stands, and nothing here imports torch: a wrong command
line fails in a fraction of a second.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from posttrain.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_groups(cls, values: Any) -> Any:
        """`lora:` with nothing under it is an empty group; a required group that is missing names its own missing keys."""
        if not isinstance(values, dict):
            return values
        groups = {n: f for n, f in cls.model_fields.items() if isinstance(f.annotation, type) and issubclass(f.annotation, BaseModel)}
        return values | {n: {} for n, f in groups.items() if values.get(n) is None and (n in values or f.is_required())}

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and "bool" not in str(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"expected a value, got {str(value).lower()}")
        return value


# ---------------------------------------------------------------- the keys


class Lora(Section):
    rank: int = Field(16, ge=1, description="rank of the two low-rank factors")
    alpha: float = Field(32, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input; DPO and GRPO set it to 0, as every dropout")
    targets: str | list[str] = Field("all-linear", description="'all-linear', or the names of the layers to adapt, e.g. [q_proj, v_proj]")


class Model(Section):
    name: str = Field(description="a hub id, a folder, or tiny-base | tiny-sft | tiny-dpo (embedded, built on first use)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="compute type. Trainable weights stay float32; auto: bf16 autocast on a GPU that has bf16, else float32"
    )
    adapter: Literal["none", "lora"] = Field("none", description="none trains every weight; lora trains a small adapter (learning rate about x 10)")
    lora: Lora = Field(default_factory=Lora, description="used with adapter: lora")
    gradient_checkpointing: bool = Field(False, description="keep fewer activations, compute them again in the backward pass: less memory, same gradients")


class ModelWithReference(Model):
    reference: str = Field(
        "auto",
        description="the frozen reference: copy (of the policy at step 0), adapter_off (the policy without its fresh adapter: no second "
        "copy in memory), a model name or folder, or auto (adapter_off with a fresh adapter, else copy)",
    )

    @model_validator(mode="after")
    def _adapter_off_needs_an_adapter(self):
        if self.reference == "adapter_off" and self.adapter != "lora":
            raise ValueError("reference: adapter_off needs adapter: lora (without an adapter there is nothing to switch off; use copy)")
        return self


class Data(Section):
    name: str | None = Field(None, description="a .jsonl, .json, .csv or .parquet file, a hub data set, or tiny-sft | tiny-identity | tiny-math")
    split: str = Field("train", description="which split of it; the embedded sets have train and test, divided by content")
    max_samples: int | None = Field(None, ge=1, description="use only the first rows")
    validation_split: float = Field(0.0, ge=0, lt=1, description="share of the rows kept out of training for evaluation (training.eval_every)")
    max_length: int | None = Field(
        None, ge=2, description="longest row in tokens, prompt and completion; default min(1024, what the model can read). Longer rows are dropped and counted"
    )
    system_prompt: str | None = Field(None, description="put before every conversation that has no system message of its own")


class Training(Section):
    batch_size: int = Field(16, ge=1, description="rows (SFT) or pairs (DPO) per optimiser step, all processes and micro-batches together")
    micro_batch_size: int = Field(8, ge=1, description="how many of them go through the model at once, per process: memory, not mathematics")
    epochs: int = Field(1, ge=1, description="passes over the data")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps, whatever epochs says")
    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="how it falls to 0 after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="optimiser steps over which it rises from 0")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay, on matrices only (not on biases and norms)")
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="adamw_8bit keeps its state in 8 bits (bitsandbytes)")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="data order, sampling, new adapter weights and dropout")
    eval_every: int | None = Field(None, ge=1, description="evaluate on the validation split every so many steps, and at the end")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda where there is one, else cpu (mps is untested)")
    cpu_threads: int | None = Field(None, ge=1, description="torch threads on a CPU; default 1 for models under a million parameters, else torch's own")


class Output(Section):
    dir: str | None = Field(None, description="the run folder; default outputs/<name of the config file>")
    overwrite: bool = Field(False, description="replace a finished run that stands there")
    samples: int = Field(4, ge=0, description="how many prompts to answer before and after the run, for samples.md; 0 skips it")


class Config(Section):
    """What all methods share."""

    model: Model
    data: Data = Field(default_factory=Data)
    training: Training = Field(default_factory=Training)
    output: Output = Field(default_factory=Output)

    @model_validator(mode="after")
    def _evaluation_needs_rows(self):
        if (self.training.eval_every is not None) != (self.data.validation_split > 0):
            raise ValueError("training.eval_every and data.validation_split belong together: set both or neither")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or f"outputs/{self.method}")

    @property
    def method(self) -> str:
        return next(name for name, kind in METHODS.items() if isinstance(self, kind))


class Sft(Section):
    length_weighting: Literal["token", "sequence"] = Field("token", description="token: every token counts the same; sequence: every row does")


class SftConfig(Config):
    sft: Sft = Field(default_factory=Sft)


class Dpo(Section):
    beta: float = Field(0.1, gt=0, description="how dearly the policy pays for leaving the reference; smaller moves further")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed share of wrong labels (conservative DPO)")
    sft_weight: float = Field(0.0, ge=0, description="times the token-mean NLL of the chosen completions, added to the loss: keeps their probability from falling")
    precompute: bool = Field(False, description="compute the reference's log-probs once before training, then free the reference")


class DpoConfig(Config):
    model: ModelWithReference
    dpo: Dpo = Field(default_factory=Dpo)


class GrpoTraining(Training):
    batch_size: int | None = Field(  # type: ignore[assignment]
        None, ge=1, description="completions per optimiser step; follows from grpo (prompts_per_step x group_size / minibatches), refused if it says otherwise"
    )


class Grpo(Section):
    prompts_per_step: int = Field(8, ge=1, description="prompts per rollout, all processes together")
    group_size: int = Field(8, ge=2, description="answers sampled to each prompt (G); 1 has nothing to be compared with")
    max_new_tokens: int = Field(256, ge=1, description="longest answer; one that has not ended by then is truncated and flagged")
    temperature: float = Field(1.0, gt=0, description="of sampling; policy, old and reference log-probs are all taken at it")
    minibatches: int = Field(1, ge=1, description="optimiser steps per pass over a rollout, each with its own token total")
    inner_epochs: int = Field(1, ge=1, description="passes over a rollout; above 1 the ratio leaves 1 and clipping begins to act")
    clip_low: float = Field(0.2, ge=0, le=1, description="the ratio is clipped at 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="and at 1 + clip_high (DAPO: 0.28, lets rare tokens grow)")
    kl_coef: float = Field(0.04, ge=0, description="weight of the KL penalty to the reference; 0: no reference is kept")
    kl_estimator: Literal["k3_is", "k3", "k2"] = Field("k3_is", description="k3_is has the gradient of KL(policy||reference); k3 is the paper's (losses/kl.py)")
    advantage: Literal["group", "leave_one_out"] = Field("group", description="baseline: the group's mean, or the mean of the other answers")
    advantage_scale: Literal["std", "none"] = Field("std", description="divide by the group's standard deviation (GRPO) or not (Dr. GRPO)")
    length_weighting: Literal["token", "sequence", "constant"] = Field(
        "token", description="token: DAPO; sequence: GRPO's 1/|o_i|; constant: Dr. GRPO's 1/max_new_tokens (losses/weights.py)"
    )
    mask_truncated: bool = Field(False, description="leave truncated answers out of the loss (they keep their reward in the group's mean)")
    reward: str | list[str] = Field(
        "answer", description="answer (the number after ####, or boxed, equals the row's `answer`), or package.module:function, or a list of these"
    )
    reward_weights: list[float] | None = Field(None, description="one weight per reward function; default 1 each")


class GrpoConfig(Config):
    model: ModelWithReference
    training: GrpoTraining = Field(default_factory=GrpoTraining)
    grpo: Grpo = Field(default_factory=Grpo)

    @model_validator(mode="after")
    def _sizes_fit(self):
        g, t = self.grpo, self.training
        rows = g.prompts_per_step * g.group_size
        if rows % g.minibatches:
            raise ValueError(f"grpo.minibatches = {g.minibatches} does not divide the {rows} completions of a rollout")
        if t.batch_size not in (None, rows // g.minibatches):
            raise ValueError(
                f"training.batch_size = {t.batch_size}, but grpo gives {g.prompts_per_step} prompts x {g.group_size} answers / "
                f"{g.minibatches} minibatches = {rows // g.minibatches} completions per optimiser step: leave batch_size out, or change grpo"
            )
        names = [g.reward] if isinstance(g.reward, str) else g.reward
        if not names:
            raise ValueError("grpo.reward names no reward function")
        if g.reward_weights is not None and len(g.reward_weights) != len(names):
            raise ValueError(f"grpo.reward_weights has {len(g.reward_weights)} entries for {len(names)} reward functions")
        return self


class Stage(Section):
    config: str = Field(description="the stage's own config file, beside this one")
    overrides: dict[str, Any] = Field(default_factory=dict, description="keys of that file to change, e.g. training.max_steps: 20")


class Ladder(Section):
    base: str = Field("tiny-base", description="the model at the foot: tiny-base, or a folder made by python -m posttrain.tiny --seed N --out FOLDER")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="training.seed of every stage")
    sft: Stage = Field(default_factory=lambda: Stage(config="sft_tiny.yaml"), description="stage 1")
    dpo: Stage = Field(default_factory=lambda: Stage(config="dpo_tiny.yaml"), description="stage 2, from stage 1's model")
    grpo: Stage = Field(default_factory=lambda: Stage(config="grpo_tiny.yaml"), description="stage 3, from stage 2's model, its adapter merged")
    problems: int = Field(300, ge=1, le=400, description="held-out word problems to evaluate each stage on")
    identity: int = Field(100, ge=1, le=100, description="held-out identity questions")
    pass_at: int = Field(8, ge=1, description="samples per problem for pass@k and the KL column")


class LadderConfig(Section):
    ladder: Ladder = Field(default_factory=Ladder)
    output: Output = Field(default_factory=Output)

    @property
    def folder(self) -> Path:
        return Path(self.output.dir or "outputs/ladder")

    @property
    def method(self) -> str:
        return "ladder"


METHODS: dict[str, type[Section]] = {"sft": SftConfig, "dpo": DpoConfig, "grpo": GrpoConfig, "ladder": LadderConfig}

_TRUNCATED = (
    "is refused in RL: a token sampled from a cut-off distribution has another log-probability than the trainer computes, "
    "so ratio and KL would be biased; use temperature alone"
)
REFUSED = {name: _TRUNCATED for name in ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty")}


# ---------------------------------------------------------------- loading


def load(
    path: str | os.PathLike | None = None, overrides: dict[str, Any] | None = None, *, method: str | None = None, origin: str = "overrides"
) -> Any:
    """Read a YAML file, apply overrides, validate. The method is the one group of the file that names one (sft:, dpo: …).

    overrides: {"dpo.beta": 0.2}; a unique leaf name will do ("beta"). origin: what messages call the overrides.
    Raises UserError with every problem found.
    """
    values, places = _read_yaml(Path(path)) if path is not None else ({}, {})
    present = [name for name in METHODS if name in values]
    if method is None:
        if len(present) != 1:
            raise UserError(f"{path}: cannot tell the method: exactly one of the groups {', '.join(METHODS)} must stand in it, found {present or 'none'}")
        method = present[0]
    elif present and method not in present:
        raise UserError(f"{path}: this is a config for loops.{present[0]}, not for loops.{method}")
    return _validate(METHODS[method], values, places, path, overrides or {}, origin)


def _validate(kind: type[Section], values: dict, places: dict, path: Any, overrides: dict[str, Any], origin: str) -> Any:
    problems: list[str] = []
    keys = [key for key, *_ in describe(kind)]
    given: set[str] = set()
    for name, value in _flat(overrides, keys).items():
        key = name.replace("-", "_")
        if key not in keys and not _open_ended(key, keys):
            matches = [k for k in keys if k.rsplit(".", 1)[-1] == key]
            if len(matches) > 1:
                problems.append(f"{origin}: '{name}' could be {' or '.join(matches)}: give the group too")
                continue
            key = matches[0] if matches else key
        if key in given:
            problems.append(f"{origin}: {key} is given twice")
        given.add(key)
        _put(values, key, os.fspath(value) if isinstance(value, os.PathLike) else value)
        places[key] = origin

    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        problems += [_sentence(e, keys, places, path) for e in error.errors()]
        config = None
    if problems:
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError("\n  ".join([f"{head} in the configuration", *problems]))
    if config.output.dir is None:
        config.output.dir = f"outputs/{Path(path).stem}" if path is not None else f"outputs/{config.method}"
    return config


def _sentence(error: Any, keys: list[str], places: dict[str, str], path: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    where = next((places[k] for k in (key, *_parents(key)) if k in places), str(path or "configuration"))
    if error["type"] == "extra_forbidden":
        leaf = key.rsplit(".", 1)[-1]
        if leaf in REFUSED:
            return f"{where}: '{leaf}' {REFUSED[leaf]}"
        return f"{where}: unknown key '{leaf}'" + _in(key) + _suggestion(key, keys)
    if error["type"] == "missing":
        return f"{where}: '{key}' is missing: give it in the file or as --{key} VALUE"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    got = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{where}: {key + ': ' if key else ''}{message}{got}"


def _in(key: str) -> str:
    return f" in {key.rsplit('.', 1)[0]}" if "." in key else ""


def _suggestion(key: str, keys: list[str]) -> str:
    group, _, leaf = key.rpartition(".")
    groups = {k.split(".")[0] for k in keys}
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == group]
    if close := difflib.get_close_matches(leaf, siblings or sorted(groups), n=1, cutoff=0.6):
        return f", did you mean '{close[0]}'?"
    leaves = {k.rpartition(".")[2]: k for k in keys}
    if close := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75):
        return f", did you mean '{leaves[close[0]]}'?"
    return f"; known here: {', '.join(siblings or sorted(groups))}"


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _flat(overrides: dict[str, Any], keys: list[str], prefix: str = "") -> dict[str, Any]:
    """{"dpo": {"beta": 0.2}} means {"dpo.beta": 0.2}: a group is merged into the file's, never put in its place."""
    out: dict[str, Any] = {}
    for name, value in overrides.items():
        whole = prefix + str(name)
        if isinstance(value, dict) and any(k.startswith(whole + ".") for k in keys):
            out |= _flat(value, keys, whole + ".")
        else:
            out[whole] = value
    return out


def _open_ended(key: str, keys: list[str]) -> bool:
    return any(key.startswith(k + ".") for k in keys if k.endswith(".overrides"))


def _put(values: dict, key: str, value: Any) -> None:
    if ".overrides." in key:  # ladder.grpo.overrides.training.max_steps: the rest is one key of the stage's own config
        head, _, tail = key.partition(".overrides.")
        parts = [*head.split("."), "overrides", tail]
    else:
        parts = key.split(".")
    for part in parts[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[parts[-1]] = value


def _read_yaml(path: Path) -> tuple[dict, dict[str, str]]:
    """-> (values, {"training.seed": "sft.yaml, line 7"}). Broken YAML and duplicate keys are refused with their line."""
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + (f"; there are {', '.join(there)}" if there else ""))
    try:
        text = path.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if root is None:
        return {}, {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: expected groups such as model:, data:, training:, found a {root.id}")
    places: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        if prefix.count(".") > 8:
            raise UserError(f"{path}: groups nested too deeply (an alias that contains itself?)")
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in places:
                raise UserError(f"{path}, line {line}: '{key}' is given twice (first on {places[key].rpartition(', ')[2]})")
            places[key] = f"{path}, line {line}"
            if isinstance(value_node, yaml.MappingNode):
                walk(value_node, f"{key}.")

    walk(root, "")
    return values, places


# ---------------------------------------------------------------- the command line


def early_check(method: str) -> Any:
    """The first statement of a loop run as a command: parse and validate sys.argv before torch is imported."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(help_text(method))
        sys.exit(0)
    try:
        path, overrides = parse(arguments)
        config = load(path, overrides, method=method, origin="command line")
        if method == "ladder":
            for stage in ("sft", "dpo", "grpo"):
                stage_config(config, stage, "tiny-base")
        elif config.data.name is None:
            raise UserError("1 problem in the configuration\n  'data.name' is missing: give it in the file or as --data.name VALUE")
        return config
    except UserError as problem:
        sys.exit(f"error: {problem}\n(python -m loops.{method} --help lists every key)")


def parse(arguments: list[str]) -> tuple[str | None, dict[str, Any]]:
    """["--config", "a.yaml", "--dpo.beta", "0.2", "--output.overwrite"] -> ("a.yaml", {"dpo.beta": "0.2", "output.overwrite": True})

    Values stay text: the key's own type decides what they mean, so a model may be called 010. A key without a value is
    true; several values, or [a, b], make a list; null and none mean no value."""
    path, overrides, i = None, {}, 0
    while i < len(arguments):
        argument = arguments[i]
        if not argument.startswith("--") or argument == "--":
            raise UserError(f"command line: expected --KEY VALUE, got '{argument}'")
        key, equals, given = argument[2:].partition("=")
        values = [given] if equals else []
        i += 1
        while not equals and i < len(arguments) and not arguments[i].startswith("--"):
            values.append(arguments[i])
            i += 1
        if key in overrides or (key == "config" and path is not None):
            raise UserError(f"command line: --{key} is given twice")
        if key == "config":
            if len(values) != 1:
                raise UserError("command line: --config takes one file")
            path = values[0]
            continue
        if len(values) == 1 and values[0].startswith("[") and values[0].endswith("]"):
            values = [v.strip() for v in values[0][1:-1].split(",")]
            overrides[key] = values
        elif len(values) == 1:
            overrides[key] = None if values[0] in ("null", "none", "None") and not _takes(key, values[0]) else values[0]
        else:
            overrides[key] = values or True
    return path, overrides


def _takes(key: str, word: str) -> bool:
    """Is `word` one of the choices of this key (model.adapter: none)?"""
    leaf = key.replace("-", "_").rsplit(".", 1)[-1]
    return any(k.rsplit(".", 1)[-1] == leaf and word in kind.split(" | ") for m in METHODS.values() for k, kind, default, _ in describe(m) if default != "None")


def stage_config(config: Any, name: str, start: str) -> Any:
    """A ladder stage's own config: its YAML, its overrides, and what makes it a rung: where it starts, its seed, its folder."""
    stage = getattr(config.ladder, name)
    path = Path(stage.config)
    if not path.is_file():
        path = Path(__file__).resolve().parent.parent / "configs" / stage.config
    fixed = {"model.name": start, "training.seed": config.ladder.seed, "output.dir": str(config.folder / name), "output.overwrite": True}
    return load(path, stage.overrides | fixed, method=name, origin=f"ladder.{name}.overrides")


def describe(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Every leaf key of a config class: (key, type, default, meaning)."""
    out = []
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            out += describe(annotation, f"{prefix}{name}.")
            continue
        default = "(required)" if field.is_required() else str(field.get_default(call_default_factory=True))
        out.append((prefix + name, _type_name(annotation), default, field.description or ""))
    return out


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if args := get_args(annotation):
        if get_origin(annotation) in (list, dict):
            return f"{get_origin(annotation).__name__} of {_type_name(args[-1])}"
        return " | ".join("none" if a is type(None) else _type_name(a) for a in args)
    return getattr(annotation, "__name__", str(annotation)).lower()


def help_text(method: str) -> str:
    import textwrap

    lines = [
        f"python -m loops.{method} --config FILE [--KEY VALUE ...]",
        "",
        "Every key below may stand in the YAML file (as nested groups) or on the command line, where it wins.",
        "A unique last part is enough: --learning-rate 1e-4. Several values make a list.",
    ]
    group = None
    for key, kind, default, meaning in describe(METHODS[method]):
        if key.split(".")[0] != group:
            group = key.split(".")[0]
            lines += ["", f"{group}:"]
        lines.append(f"  --{key}  [{kind}]  default: {default}")
        lines += textwrap.wrap(meaning, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def save(config: Section, path: Path) -> None:
    """The resolved config as YAML; load() reads it back."""
    path.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True))
