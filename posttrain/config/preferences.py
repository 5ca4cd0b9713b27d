"""The keys of the loops that learn from what was preferred: DPO and its relatives, SimPO and ORPO, KTO."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.keys import Config, DpoPreflight, ModelWithReference, SftPreflight, SharingTraining
from posttrain.config.section import Section


def refuse_unread(section: Section, name: str, read_by: dict[str, tuple[str, ...]]) -> None:
    """A key that the chosen loss does not read is refused, not ignored. read_by: {key: the losses that read it}."""
    chosen: Any = section
    for key, losses in read_by.items():
        if getattr(section, key) != type(section).model_fields[key].default and chosen.loss not in losses:
            raise ValueError(
                f"{name}.{key} belongs to {name}.loss: {' or '.join(losses)}; {chosen.loss} does not read it: leave it out"
            )


class Dpo(Section):
    loss: Literal["sigmoid", "ipo", "robust", "dpop", "apo_zero", "apo_down"] = Field(
        "sigmoid",
        description="sigmoid: DPO; ipo: the margin is drawn to 1 / (2 beta); robust: unbiased under wrong labels; dpop: pays where the "
        "chosen answers fall; apo_zero, apo_down: chosen up (down) and rejected down, each on its own (losses/)",
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull towards the reference; with a smaller β the gap between chosen and rejected grows larger",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of wrong labels; sigmoid: conservative DPO; robust needs it"
    )
    penalty: float | None = Field(
        None, ge=0, description="dpop: times the nats that a chosen answer falls below the reference; default 50"
    )
    length_normalize: bool = Field(
        False,
        description="ipo: log-probs as means per token, as its authors advise, and not as sums per answer, as the equation has it: "
        "the target 1 / (2 beta) is then in nats per token",
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="times the token-mean NLL of the chosen completions, added to the loss: keeps their probability from falling",
    )
    precompute: bool = Field(
        False, description="compute the reference's log-probs once before training, then free the reference"
    )

    @model_validator(mode="after")
    def _what_the_loss_reads(self) -> Self:
        refuse_unread(
            self,
            "dpo",
            {"label_smoothing": ("sigmoid", "robust"), "penalty": ("dpop",), "length_normalize": ("ipo",)},
        )
        if self.loss == "robust" and not self.label_smoothing:
            raise ValueError(
                "dpo.loss: robust needs dpo.label_smoothing, the share of wrong labels (without any it is sigmoid)"
            )
        if self.loss == "dpop" and self.penalty is None:
            self.penalty = 50.0
        return self


class DpoConfig(Config):
    model: ModelWithReference
    training: SharingTraining = Field(default_factory=SharingTraining)
    dpo: Dpo = Field(default_factory=Dpo)
    preflight: DpoPreflight = Field(default_factory=DpoPreflight)

    @model_validator(mode="after")
    def _a_stream_has_no_index(self) -> Self:
        if self.dpo.precompute and self.data.streaming:
            raise ValueError("dpo.precompute goes through all rows beforehand: leave it out with data.streaming")
        return self


class Simpo(Section):
    loss: Literal["simpo", "orpo"] = Field(
        "simpo",
        description="simpo: the chosen answer leads by a margin, in means per token; orpo: NLL of the chosen answers, and their odds "
        "against the rejected ones'",
    )
    beta: float | None = Field(
        None, gt=0, description="simpo: times the difference of the mean log-probs per token; default 2"
    )
    gamma: float | None = Field(
        None, ge=0, description="simpo: what the chosen answer has to lead by, in units of beta; default 0.5"
    )
    odds_weight: float | None = Field(
        None, gt=0, description="orpo: weight of the odds-ratio term beside the NLL (the paper's lambda); default 0.1"
    )

    @model_validator(mode="after")
    def _what_the_loss_reads(self) -> Self:
        refuse_unread(self, "simpo", {"beta": ("simpo",), "gamma": ("simpo",), "odds_weight": ("orpo",)})
        defaults = {"beta": 2.0, "gamma": 0.5} if self.loss == "simpo" else {"odds_weight": 0.1}
        for key, value in defaults.items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        return self


class SimpoConfig(Config):
    training: SharingTraining = Field(default_factory=SharingTraining)
    simpo: Simpo = Field(default_factory=Simpo)
    preflight: SftPreflight = Field(default_factory=SftPreflight)


class Kto(Section):
    beta: float = Field(
        0.1, gt=0, description="how dearly the policy pays for leaving the reference; smaller moves further"
    )
    desirable_weight: float = Field(
        1.0, ge=0, description="what a good answer counts; with few good ones raise it (number times weight alike)"
    )
    undesirable_weight: float = Field(1.0, ge=0, description="what a bad answer counts")


class KtoConfig(Config):
    model: ModelWithReference
    training: SharingTraining = Field(default_factory=SharingTraining)
    kto: Kto = Field(default_factory=Kto)
    preflight: DpoPreflight = Field(default_factory=DpoPreflight)

    @model_validator(mode="after")
    def _a_step_has_something_to_mismatch(self) -> Self:
        if self.training.batch_size == 1:
            raise ValueError(
                "training.batch_size: 1 leaves loops.kto without a baseline: z0 is how much the answers of a step's *other* rows have "
                "risen behind a row's prompt, and one row has no other: at least 2, better 16 or more"
            )
        if not self.kto.desirable_weight and not self.kto.undesirable_weight:
            raise ValueError("kto.desirable_weight and kto.undesirable_weight are both 0: nothing would be learned")
        return self
