"""Adapters that clients load and unload while the server runs (--allow-adapters)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from posttrain.errors import UserError
from posttrain.serving.api import Server
from posttrain.serving.engine import Closed
from posttrain.serving.fields import Adapter
from posttrain.serving.refused import REFUSALS, Refusal


def add_adapters(app: FastAPI, server: Server) -> None:
    async def between(do: Callable[[], Any]) -> Any:
        try:
            return await asyncio.wrap_future(server.engine.between_tokens(do))
        except UserError as problem:
            raise Refusal(400, str(problem)) from None
        except Closed:
            raise Refusal(503, "the server is closing", retry=5) from None

    @app.post("/v1/load_lora_adapter", responses=REFUSALS, tags=["adapters"])
    async def load(asked: Adapter) -> dict[str, Any]:
        """A LoRA adapter on the first model, from then on a model of its own name. A name stands for the same weights
        as long as it is there: another version needs another name."""
        if asked.lora_path is None:
            raise Refusal(422, "lora_path: Field required", param="lora_path")
        path, name = str(Path(asked.lora_path).expanduser()), asked.lora_name
        if name in server.voices:
            raise Refusal(
                400, f"{name} is there already: give the new one another name, or unload it", param="lora_name"
            )
        lines = await between(lambda: server.voices.load_adapter(name, path, key="lora_path"))
        return {"loaded": name, "remarks": lines}

    @app.post("/v1/unload_lora_adapter", responses=REFUSALS, tags=["adapters"])
    async def unload(asked: Adapter) -> dict[str, Any]:
        """Answers that it is writing are broken off."""
        voice = server.voice(asked.lora_name)
        if voice.adapter is None:
            raise Refusal(400, f"{voice.name} is a model, not an adapter", param="lora_name")
        await between(lambda: server.voices.unload_adapter(asked.lora_name))
        return {"unloaded": asked.lora_name}
