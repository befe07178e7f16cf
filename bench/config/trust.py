"""Folders of plug-ins that the user trusts: their code runs when a command loads it.

A `bench.toml` may come from someone else. Its plug-ins are imported only if the user has trusted their folders once, by
`--trust` or by confirming a prompt at the terminal.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from bench.config.bench_toml import expand_user


def trust_file() -> Path:
    """Return the file with the trusted folders, one per line."""
    return expand_user(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "maskbench" / "trusted_folders"


def untrusted(folders: Iterable[Path]) -> list[Path]:
    """Return the folders, resolved, that the user has not trusted."""
    try:
        trusted = set(trust_file().read_text("utf-8", errors="surrogateescape").splitlines())
    except OSError:
        trusted = set()
    return [folder for folder in (each.resolve() for each in folders) if str(folder) not in trusted]


def trust(folders: Iterable[Path]) -> None:
    """Store that the user trusts the folders."""
    file = trust_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.writelines(f"{folder.resolve()}\n" for folder in folders)
