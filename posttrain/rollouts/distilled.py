"""Answers of a stronger model to learn from (python -m posttrain.curate answers): sequence-level distillation (Kim and
Rush 2016). The model is a local one or stands behind an OpenAI-compatible server.

Every answer goes at once, as it came, into OUT.asked.jsonl, one line each behind a first line with the settings. What
stands there is not asked again, so a run that was killed, or that the server has ended, goes on with the same command;
other settings are refused, other filters are not: they only decide what of it becomes a row of OUT.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tqdm import tqdm

from posttrain.data import filters
from posttrain.data.files import refuse_out, write_rows
from posttrain.data.messages import Messages
from posttrain.errors import UserError
from posttrain.rollouts.asked import Asked
from posttrain.rollouts.endpoint import Endpoint, Refused, Stopped
from posttrain.rollouts.speaking import Said, Speaker, one_prompt, rows_to_ask


def distil(
    model: str,
    prompts: str,
    out: str,
    *,
    url: str | None = None,
    body: str | None = None,
    requests_per_minute: float | None = None,
    concurrency: int | None = None,
    retries: int | None = None,
    timeout: float | None = None,
    split: str = "train",
    task: dict[str, Any] | None = None,
    max_prompts: int | None = None,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    system_prompt: str | None = None,
    seed: int = 0,
    min_chars: int | None = None,
    max_chars: int | None = None,
    drop_refusals: str | Callable[[str], bool] | None = None,
    score: list[str] | None = None,
    min_score: float | None = None,
    min_share: float = 0.1,
) -> str:
    """Write {prompt, completion, model, settings} rows to `out`; returns what to say."""
    refuse_out(out)
    if min(max_new_tokens, 1 if max_prompts is None else max_prompts) < 1 or temperature < 0:
        raise UserError("--max-new-tokens and --max-prompts must be at least 1, --temperature at least 0")
    _check_options_of_a_server(url, body, requests_per_minute, concurrency, retries, timeout)
    if min_score is not None and score is None:
        raise UserError("--min-score needs --score")
    settings = {"temperature": temperature, "max_tokens": max_new_tokens, "seed": seed} | _more(body)
    rows = rows_to_ask(prompts, split=split, max_prompts=max_prompts, system_prompt=system_prompt, task=task)
    _refuse_tools(rows)
    keep = _filters(min_chars, max_chars, drop_refusals)
    scorer = None if score is None else _Score(score, rows)
    unique = {key_of(row["prompt"]): row for row in rows}
    endpoint = None
    if url is not None:
        endpoint = Endpoint(
            url,
            requests_per_minute=requests_per_minute,
            retries=6 if retries is None else retries,
            timeout=timeout or 120.0,
        )
    asked = Asked(out, {"model": model, "url": url, "system_prompt": system_prompt, **settings})
    pending = {key: row["prompt"] for key, row in unique.items() if key not in asked.said}
    before = len(unique) - len(pending)
    try:
        if endpoint is None:
            _ask_model(model, pending, asked, max_new_tokens, temperature, seed)
        else:
            _ask_server(endpoint, {"model": model, **settings}, pending, asked, concurrency or 4)
    except (UserError, KeyboardInterrupt) as problem:
        done = sum(key in asked.said for key in unique)
        raise UserError(
            f"{str(problem) or 'interrupted'}. {done} of {len(unique)} answers stand in {asked.path}: the same command goes on"
        ) from None
    finally:
        asked.close()
    found, left_out = [], collections.Counter()
    left_out["the same prompt again"] = len(rows) - len(unique)
    for key, row in unique.items():
        text, problem = asked.said[key]
        new = {"prompt": one_prompt(row), "completion": text}
        if problem := problem or next((why for f in keep if (why := f(new, text)) is not None), None):
            left_out[problem] += 1
        else:
            found.append(
                (row, new | {"model": model, "settings": {k: v for k, v in settings.items() if v is not None}})
            )
    if scorer is not None:
        found = scorer(found, min_score, left_out)
    why = "; ".join(f"{n} {reason}" for reason, n in left_out.most_common() if n) or "none"
    said = f"{len(unique)} prompts, {before} of them asked before; left out: {why}"
    if len(found) < max(1, min_share * len(unique)):
        first = next((text for text, _ in asked.said.values() if text), "")
        raise UserError(
            f"only {len(found)} of {len(unique)} answers are of use (--min-share {min_share:g}); left out: {why}. The first answer "
            f"was: {first!r:.120}. All are in {asked.path}"
        )
    write_rows(out, [new for _, new in found])
    return (
        f"{said}\nwrote {len(found)} row{'s' * (len(found) != 1)} to {out}; every answer as it came is in {asked.path}"
    )


def key_of(messages: Messages) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:24]


def _check_options_of_a_server(
    url: str | None, body: str | None, per_minute: float | None, *numbers: float | None
) -> None:
    concurrency, retries, timeout = numbers
    given = {
        "--body": body,
        "--requests-per-minute": per_minute,
        "--concurrency": concurrency,
        "--retries": retries,
        "--timeout": timeout,
    }
    for name, value in given.items():
        if value is not None and url is None:
            raise UserError(f"{name} belongs to --url")
        if isinstance(value, int | float) and value <= 0 and (name, value) != ("--retries", 0):
            raise UserError(f"{name} {value:g}: expected more than 0")


def _more(body: str | None) -> dict[str, Any]:
    """--body: what else stands in each request; null takes a key out of it."""
    if body is None:
        return {}
    try:
        more = json.loads(body)
    except ValueError as error:
        raise UserError(f"--body {body}: not JSON: {error}") from None
    if not isinstance(more, dict) or more.keys() & {"model", "messages", "stream", "n"}:
        raise UserError("--body must be an object, such as '{\"top_p\": 0.9}', without model, messages, stream and n")
    return more


def _refuse_tools(rows: list[dict]) -> None:
    for number, row in enumerate(rows, start=1):
        if "tools" in row.get("shown", {}) or any("tool_calls" in m for m in row["prompt"]):
            raise UserError(f"prompt {number} has tools: answers that call tools are not made here")


def _filters(
    min_chars: int | None, max_chars: int | None, drop_refusals: str | Callable[[str], bool] | None
) -> list[filters.Filter]:
    """Each is given the row and its answer. drop_refusals: a regular expression, or what says of a text: it refuses."""
    keep = [filters.length(min_chars, max_chars), filters.exact_duplicates()]
    if drop_refusals is not None:
        matches = filters.pattern(drop_refusals, keep=False) if isinstance(drop_refusals, str) else None
        refuses = drop_refusals if callable(drop_refusals) else lambda text: matches({}, text) is not None
        keep.insert(1, lambda row, text: "refuse (--drop-refusals)" if refuses(text) else None)
    return keep


# ---------------------------------------------------------------- who is asked


def _ask_model(
    name: str, pending: dict[str, Messages], asked: Asked, max_new_tokens: int, temperature: float, seed: int
) -> None:
    if not pending:
        return
    speaker = Speaker(name, key="--model", max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    keys = list(pending)
    bar = tqdm(total=len(keys), desc="answers", unit="answer", disable=not sys.stderr.isatty())
    for start in range(0, len(keys), 16):
        picked = keys[start : start + 16]
        for key, said in zip(picked, speaker([pending[key] for key in picked]), strict=True):
            asked.add(key, said)
        bar.update(len(picked))
    bar.close()


def _ask_server(
    endpoint: Endpoint, request: dict[str, Any], pending: dict[str, Messages], asked: Asked, concurrency: int
) -> None:
    request = {name: value for name, value in request.items() if value is not None}

    def one(key: str, messages: Messages) -> None:
        try:
            said = read_reply(endpoint.ask(request | {"messages": messages}))
        except Refused as no:
            said = Said("", f"were refused by the server ({no!s:.80})")
        except UserError:
            endpoint.pace.over.set()  # no other request begins; what is under way comes to its end, and is kept
            raise
        asked.add(key, said)

    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(one, key, messages) for key, messages in pending.items()]
        bar = tqdm(total=len(futures), desc="answers", unit="answer", disable=not sys.stderr.isatty())
        try:
            for future in concurrent.futures.as_completed(futures):
                with contextlib.suppress(Stopped):  # the one that has ended the run will tell
                    future.result()
                bar.update(1)
        except BaseException:
            endpoint.pace.over.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            bar.close()


def read_reply(reply: dict[str, Any]) -> Said:
    """What a server answered -> its text, and why it is of no use."""
    choice = reply["choices"][0]
    message, ended = choice.get("message") or {}, choice.get("finish_reason")
    text = message.get("content") or ""
    if message.get("tool_calls") or not isinstance(text, str):
        return Said("", "are no text")
    problems = {"length": "did not end (max_tokens)", "content_filter": "were stopped by the server's filter"}
    if ended not in (None, "stop", "eos", "end_turn"):
        return Said(text.strip(), problems.get(ended, f"ended with '{ended}'"))
    return Said(text.strip(), None if text.strip() else "are empty")


# ---------------------------------------------------------------- --score


class _Score:
    """A reward function or a reward model's folder, found before anything is asked."""

    def __init__(self, names: list[str], rows: list[dict]):
        from posttrain.rollouts import best_of_k, calling, rewards

        self.names, self.by_model = names, best_of_k.is_reward_model(names)
        self.functions = [] if self.by_model else rewards.find(names, key="--score")
        columns = [*dict.fromkeys(name for row in rows for name in row["columns"])]
        calling.refuse_missing(self.functions, [*columns, "prompts", "completions", "finished"])

    def __call__(self, found: list[tuple[dict, dict]], least: float | None, left_out: collections.Counter) -> list:
        if not found:
            return found
        scores = self._by_model(found) if self.by_model else self._by_functions(found)
        kept = [
            (row, new | {"score": s})
            for (row, new), s in zip(found, scores, strict=True)
            if least is None or s >= least
        ]
        left_out[f"score less than {least}"] += len(found) - len(kept)
        return kept

    def _by_functions(self, found: list[tuple[dict, dict]]) -> list[float]:
        from posttrain.rollouts import rewards

        texts = [new["completion"] for _, new in found]
        ended = SimpleNamespace(completion_ids=None, finished=[True] * len(texts))  # of a server there are no ids
        available = rewards.offer([row for row, _ in found], texts, ended)
        del available["completion_ids"]
        return rewards.score(self.functions, None, available)[0]

    def _by_model(self, found: list[tuple[dict, dict]]) -> list[float]:
        """On the tokens of the reward model's own tokenizer: whoever wrote the answer may have another."""
        import torch

        from posttrain.models import scalar
        from posttrain.tokens import template
        from posttrain.tokens.batch import Example

        device = "cuda" if torch.cuda.is_available() else "cpu"
        judge, tokenizer = scalar.load_reward_model(self.names[0], device=device, key="--score")
        examples = [
            Example.of(
                template.prompt_ids(tokenizer, row["prompt"]),
                template.completion_ids(tokenizer, row["prompt"], new["completion"]),
            )
            for row, new in found
        ]
        with torch.no_grad():
            return scalar.score_examples(judge, examples, tokenizer.pad_token_id, 16)
