"""Tokens per second of an OpenAI-compatible server: one client after another, and many at once.

python -m posttrain.serve --model smollm2 --port 8001
python -m benchmarks.serving --url http://127.0.0.1:8001/v1 --model smollm2

Beside it, in an environment of its own (pip install "transformers[serving]"), the library's own server:

transformers serve FOLDER --device cpu --port 8002 [--continuous-batching]
python -m benchmarks.serving --url http://127.0.0.1:8002/v1 --model FOLDER

FOLDER is what `python -m posttrain.smollm2` prints. Figures and hardware in benchmarks/RESULTS.md."""

import argparse
import concurrent.futures
import json
import time
import urllib.request

QUESTIONS = [
    "Tell me a short story about a lamp.", "Why is the sky blue?", "Write a letter to a friend about the weather.",
    "What should I cook tonight?", "Explain what a prime number is.", "Describe a walk through a forest.",
    "How do I learn to swim?", "What is the history of bread?",
]  # fmt: skip


def ask(url: str, model: str, text: str, tokens: int, seed: int) -> tuple[int, float]:
    """-> (tokens of the answer, seconds)"""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 1.0, "seed": seed}  # fmt: skip
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})  # fmt: skip
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=1200) as reply:
        said = json.load(reply)
    return said["usage"]["completion_tokens"], time.perf_counter() - started


def at_once(options: argparse.Namespace, clients: int, requests: int) -> tuple[float, float]:
    """-> (tokens per second of all together, the median answer's seconds)"""

    def one(i: int) -> tuple[int, float]:
        return ask(options.url, options.model, QUESTIONS[i % len(QUESTIONS)], options.tokens, i)

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        told = list(pool.map(one, range(requests)))
    return sum(n for n, _ in told) / (time.perf_counter() - started), sorted(s for _, s in told)[requests // 2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    options = parser.parse_args()
    ask(options.url, options.model, QUESTIONS[0], 4, 0)  # the first is slower
    print("| clients | requests | tokens/s | median answer, s |\n|---|---|---|---|")
    for clients, requests in ((1, 8), (8, 32), (32, 64)):
        speed, seconds = at_once(options, clients, requests)
        print(f"| {clients} | {requests} | {speed:.1f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
