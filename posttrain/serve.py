"""Serve models: an HTTP API as OpenAI's, and a page on which people compare two answers and vote.

    python -m posttrain.serve --model outputs/sft --adapter outputs/dpo/model
    python -m posttrain.serve --model tiny-sft tiny-dpo --votes votes.jsonl        then http://127.0.0.1:8000

POST /v1/chat/completions, /v1/completions   OpenAI's fields: stream, n, stop, seed, logprobs, return_token_ids
POST /v1/generate                            {"prompt": "Who are you?", "max_new_tokens": 64, "temperature": 0}
GET  /v1/models, /health, /metrics, /docs    the names to ask for, is it alive, Prometheus, every field
GET  /                                       one question, two answers, a vote: lines for --data.name of loops.dpo

Requests join and leave one running batch between two tokens, so many clients at once are several times as fast as one
after another. It listens on this machine only; any other --host needs a key in the environment (POSTTRAIN_API_KEY).
Ctrl-C or SIGTERM: it takes no more, lets what runs end, and stops. docs/serve.md: from training to votes and back."""

from __future__ import annotations

import argparse
import os
import sys

from posttrain.errors import UserError, clear_exit
from posttrain.serving.guard import LOOPBACK

KEY = "POSTTRAIN_API_KEY"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    many = {"nargs": "+", "action": "extend", "default": []}
    add("--model", **many, metavar="[NAME=]PATH", help="a hub id, a folder, an adapter (merged), smollm2, tiny-base, tiny-sft, tiny-dpo or tiny-grpo; several: each a model of its own")  # fmt: skip
    add("--adapter", **many, metavar="[NAME=]PATH", help="LoRA adapters of the first model, each under a name of its own; the base's weights are loaded once")  # fmt: skip
    add("--host", default="127.0.0.1", help=f"default 127.0.0.1: this machine only; any other needs {KEY} in the environment")  # fmt: skip
    add("--port", type=int, default=8000, help="default 8000; 0: a free one, which is printed")
    add("--allow-adapters", action="store_true", help="clients may load adapters from this machine's disk, and unload them")  # fmt: skip
    add("--max-length", type=int, help="tokens of a prompt and its answer; default: what the model reads, at most 4096")
    add("--max-new-tokens", type=int, default=512, help="of an answer whose request names no limit (default 512)")
    add("--max-rows", type=int, default=32, help="answers that are written at once (default 32): memory")
    add("--max-waiting", type=int, default=256, help="answers that may wait for their turn (default 256); then 429")
    add("--max-body", type=int, default=1 << 20, metavar="BYTES", help="of a request (default 1 MiB); then 413")
    add("--grace", type=float, default=10.0, metavar="SECONDS", help="that running answers have to end when it stops (default 10)")  # fmt: skip
    add("--votes", default="outputs/votes.jsonl", metavar="FILE", help="where the page's votes go (default outputs/votes.jsonl); what is there stays")  # fmt: skip
    add("--reward", metavar="NAME", help="a reward function, as grpo.reward: the page shows what it gives to both answers, after the vote")  # fmt: skip
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU, where a greedy answer is that of posttrain.chat and posttrain.evaluate")  # fmt: skip
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: cuda where there is one")
    options = parser.parse_args(arguments)
    with clear_exit("\n(python -m posttrain.serve --help says more)"):
        refuse(options)
        from posttrain.serving.start import serve

        serve(options, os.environ.get(KEY) or None)


def refuse(options: argparse.Namespace) -> None:
    """What can be seen before torch is loaded."""
    if not options.model:
        raise UserError("--model is needed: a hub id, a folder, smollm2, tiny-sft")
    for name in ("max_length", "max_new_tokens", "max_rows", "max_waiting", "max_body"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 <= options.port < 65536 or not 0 <= options.grace <= 86_400:
        raise UserError("--port must be from 0 to 65535, --grace at least 0 and at most 86400 s")
    key = os.environ.get(KEY)
    if options.host not in LOOPBACK and not key:
        raise UserError(
            f"--host {options.host} opens the server to other machines: set {KEY} in the environment to a long random key first "
            "(clients send it as Authorization: Bearer KEY)"
        )
    if key is not None and key != key.strip():
        raise UserError(f"{KEY} begins or ends with a space: no client could send that")
    try:
        import fastapi  # noqa: F401
        import fastapi_offline  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as missing:
        raise UserError(f"serving needs {missing.name}: pip install -r requirements-serve.txt") from None
    print("loading …", file=sys.stderr)


if __name__ == "__main__":
    main()
