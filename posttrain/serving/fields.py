"""What a client may ask, field by field. A field that is not here is refused, and so is a value that would be ignored:
an answer that was sampled in another way than was asked for looks like any other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

MOST_ANSWERS = 32
HOTTEST = 10.0
COLDEST = 1e-6  # above 0; logits that are divided by less are infinite, or the temperature itself is 0 in float32
SEEDS = 2**40  # from 0 up to here
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(min_length=1)]
Text = Annotated[str, StringConstraints(min_length=1)]


def _whole_letters(text: str) -> str:
    """JSON can spell half of a letter ("\\ud83d"), which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a letter (a lone surrogate) is no text") from None
    return text


def _not_nearly_nothing(value: float) -> float:
    if 0 < value < COLDEST:
        raise ValueError(f"0 (greedy), or at least {COLDEST:g}")
    return value


Temperature = Annotated[float, Field(ge=0, le=HOTTEST), AfterValidator(_not_nearly_nothing)]


class Asked(BaseModel):
    """What all ways of asking share."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="a name of /v1/models; without one, the first")
    temperature: Temperature = Field(1.0, description="0 is greedy")
    seed: Seed | None = Field(None, description="the same seed, prompt and length give the same answer")

    @field_validator("temperature", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        return float(value) if value in range(11) and not isinstance(value, bool) else value


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class OpenAI(Asked):
    """What OpenAI's two ways of asking share."""

    n: int = Field(1, ge=1, le=MOST_ANSWERS, description="answers to each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = Field(
        None, description="text that ends an answer, not shown"
    )
    stream: bool = Field(False, description="tokens as they come, as server-sent events")
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(
        False, description="the ids of the prompt and of each answer, its end token included"
    )
    user: str | None = Field(None, description="kept nowhere")
    # Fields that clients send with these values; another value would change the answer, which nothing here does.
    top_p: float | None = Field(None, description="only 1: answers are drawn from the whole distribution, which makes their log-probs true")  # fmt: skip
    presence_penalty: float | None = Field(None, description="only 0")
    frequency_penalty: float | None = Field(None, description="only 0")

    @field_validator("top_p", "presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _as_it_is(cls, value: Any, about: Any) -> Any:
        only = 1 if about.field_name == "top_p" else 0
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value == only):
            return None
        raise ValueError(f"only {only} is possible: answers are drawn from the model's whole, unchanged distribution")

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> OpenAI:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options belongs to stream: true")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class Part(BaseModel):
    """A piece of a message's content. Only text can be read."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: Annotated[str, AfterValidator(_whole_letters)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, AfterValidator(_whole_letters)] | Annotated[list[Part], Field(min_length=1)]

    def plain(self) -> dict[str, Any]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class AskedChat(OpenAI):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, description="the last one is the user's")
    max_tokens: int | None = Field(None, ge=1, description="tokens of an answer; also max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = Field(None, description="the log-prob of every token, at the request's temperature (greedy: at 1)")  # fmt: skip
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and those of the likeliest tokens beside it")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="for the chat template: {enable_thinking: false}")  # fmt: skip

    @model_validator(mode="after")
    def _one_meaning(self) -> AskedChat:
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message is the assistant's: there is nothing to answer")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class AskedCompletion(OpenAI):
    """POST /v1/completions"""

    prompt: Text | Ids | Annotated[list[Text | Ids], Field(min_length=1, max_length=256)] = Field(
        description="text to go on with, as it is (no chat template; special tokens in it are tokens), or ids; or several"
    )
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(
        None, ge=0, le=20, description="log-probs of the tokens, and of so many likeliest ones"
    )

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several: [1, 2] is one prompt of two ids, [[1, 2]] and ["a"] a list of one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt  # type: ignore[list-item, return-value]


class AskedSimply(Asked):
    """POST /v1/generate"""

    prompt: Text = Field(description="what a user says; it goes through the chat template")
    max_new_tokens: int | None = Field(None, ge=1, description="default: the server's --max-new-tokens")
    temperature: Temperature = Field(0.0, description="0, the default, is greedy")


class Adapter(BaseModel):
    """POST /v1/load_lora_adapter, /v1/unload_lora_adapter"""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    lora_path: Text | None = Field(
        None, description="a folder on the server's disk, or a hub id; to unload: not needed"
    )
