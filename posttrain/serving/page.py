"""GET /: the page on which people compare two answers; GET /docs: every field of the API. Both without a network: no
script, style or picture of another host, and a policy that tells the browser so."""

from __future__ import annotations

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.responses import FileResponse

from posttrain.serving.refused import Refusal

OURS = Path(__file__).parent / "static"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"
FILES = {name: OURS / name for name in ("page.css", "page.js", "docs.js", "icon.svg")} | {
    name: SWAGGER / name for name in ("swagger-ui.css", "swagger-ui-bundle.js")
}
SHUT = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE = f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; {SHUT}"
DOCS = PAGE.replace("img-src 'self'", "img-src 'self' data:")  # Swagger UI's arrows stand in its style sheet


def add_page(app: FastAPI) -> None:
    def sent(path: Path, policy: str) -> FileResponse:
        # asked for anew each time: after an update no browser mixes an old script with a new page
        return FileResponse(path, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return sent(OURS / "page.html", PAGE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return sent(OURS / "docs.html", DOCS)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> FileResponse:
        if name not in FILES:
            raise Refusal(404, f"no such path: /static/{name:.200}")
        return sent(FILES[name], PAGE)


def say_that_a_key_is_needed(app: FastAPI) -> None:
    """In the description of the API: /docs then has a button "Authorize"."""
    described = app.openapi()
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"key": []}]
