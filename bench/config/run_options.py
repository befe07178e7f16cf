"""The options of a run as keyword arguments of Python, for editors and type checkers.

They repeat the definitions of `bench.config.options`, because a type checker reads only literal ones; a test compares
both. An option with several values accepts one of them, a sequence, or text with commas.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict


class RunOptions(TypedDict, total=False):
    """Keyword arguments of `bench.run`; None is the value of the campaign, of the profile, or the default."""

    dataset: str | None
    protocol: Literal["one-for-one", "unified", "kshot"] | None
    k: int | Sequence[int] | str | None
    category: str | Sequence[str] | None
    layout: str | None
    depth: int | None
    page: int | None
    allow_large: bool | None
    seed: int | Sequence[int] | str | None
    limit: int | None
    one_at_a_time: bool | None
    selection: Literal["last", "oracle", "both"] | None
    eval_every: int | None
    calibrate: float | None
    resolution: Literal["input", "original"] | None
    map_precision: Literal["float16", "float32", "none"] | None
    time: bool | None
    device: str | None
    precision: Literal["float32", "bfloat16", "float16"] | None
    compile: bool | None
    threads: int | None
    preprocessing: Literal["shared", "paper"] | None
    batch_size: int | None
    keep_model: bool | None
    executor: Literal["local", "process", "ray"] | None
    timeout: float | None
    checkpoint_minutes: float | None
    max_memory: float | None
    address: str | None
    gpus_per_task: float | None
    ship_data: bool | None
