"""``GET /playground``: a page that sends requests and shows the decisions, and its files."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from cdserve.config import Playground

_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",  # a new version of the server has a new page
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

router = APIRouter(include_in_schema=False)
_files = StaticFiles(directory=Path(__file__).parents[1] / "playground")


@router.get("/playground")
async def page(raw_request: Request) -> Response:
    """Serves the playground page. File URLs are relative, so a proxy may add a path prefix."""
    return await file("index.html", raw_request)


@router.get("/playground/settings.json")
async def settings(raw_request: Request) -> JSONResponse:
    """Shows the settings of the playground page. Needs no API key, like the page."""
    chosen = raw_request.app.state.args.cdserve.default.settings.playground
    page_settings = chosen if isinstance(chosen, Playground) else Playground()
    return JSONResponse(page_settings.model_dump(), headers=_HEADERS)


@router.get("/playground/{name}")
async def file(name: str, raw_request: Request) -> Response:
    """Serves a file of the playground page.

    Raises:
        HTTPException: no file has this name.
    """
    answer = await _files.get_response(name, raw_request.scope)
    answer.headers.update(_HEADERS)
    return answer
