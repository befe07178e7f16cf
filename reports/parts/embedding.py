"""Figures as addresses that hold them, no larger in all than a page should be."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence

from PIL import Image

from bench.report import Figure

BYTES = 12_000_000
"""Of all pictures of cases in a page; beyond it they are made smaller."""

SMALLEST = 0.4
"""Of a sheet's size: smaller than that shows nothing, so sheets are left out instead."""

_KINDS = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


def embedded(figures: Sequence[Figure]) -> tuple[dict[str, str], str]:
    """The address of each figure by its name, and in words what was made smaller or left out."""
    sheets = {figure.name: figure.files["jpg"] for figure in figures if "jpg" in figure.files}
    drawn = [figure for figure in figures if figure.kind != "sheet" and figure.files]
    found = {figure.name: _address(*_drawn(figure.files)) for figure in drawn}
    size = sum(map(len, sheets.values()))
    if size <= BYTES:
        return found | {name: _address("jpg", content) for name, content in sheets.items()}, "Pictures are as stored."
    scale = max((BYTES / size) ** 0.5, SMALLEST)
    room, left_out = BYTES, 0
    for name, content in sheets.items():
        small = _smaller(content, scale)
        if len(small) > room:
            left_out += 1
            continue
        room -= len(small)
        found[name] = _address("webp", small)
    told = f"Pictures of cases are at {scale:.0%} of their size, to keep the page small. "
    told += f"{left_out} sheets of {len(sheets)} are left out. " if left_out else ""
    return found, told + "In full they lie in figures/, where the report was written with --out."


def _drawn(files: Mapping[str, bytes]) -> tuple[str, bytes]:
    kind = next(kind for kind in _KINDS if kind in files)
    return kind, files[kind]


def _address(kind: str, content: bytes) -> str:
    return f"data:{_KINDS[kind]};base64,{b64encode(content).decode()}"


def _smaller(content: bytes, scale: float) -> bytes:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.BOX, reducing_gap=2).save(file, "WEBP", quality=70, method=1)
    return file.getvalue()
