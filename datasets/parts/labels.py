"""Names of folders and labels that state whether images are good: the same for folders, patterns and CSV tables."""

import re
from collections.abc import Iterable, Sequence

from .files import join_names, log

GOOD_NAMES = ("good", "ok", "normal", "pass", "0")
"""Names of folders and labels of good images, in lower case."""

BAD_NAMES = frozenset({"bad", "ng", "nok", "ko", "defect", "defects", "defective", "anomaly", "anomalous", "fail", "1"})
"""Names of folders of defective images of any type, in lower case."""

_GOOD_PREFIX = re.compile(r"good|ok|normal|pass|0+(?!\d)|nodefect|nondefect|defectfree")


def lower_name(name: str) -> str:
    """Return the name of a folder or a label for comparison: in lower case, without surrounding spaces."""
    return name.strip().lower()


def is_good_name(name: str) -> bool:
    """Return whether the name of a folder or a label states that its images are good."""
    return lower_name(name) in GOOD_NAMES


def resembles_good(name: str) -> bool:
    """Return whether a name starts like one of good images: "ok_parts", "Good2", "0", "no defect"; but not "01"."""
    return bool(_GOOD_PREFIX.match(re.sub(r"[\W_]", "", name.lower())))


def warn_resembles_good(title: str, defects: Iterable[str], good: Sequence[str] = GOOD_NAMES) -> None:
    """Log a warning if the names of defect types resemble those of good images, which are `good`."""
    names = sorted({name for name in defects if resembles_good(name)})
    if names:
        log.warning("%s: the images of '%s' count as defective, although the name resembles one of good images. If "
                    "they are good, rename it to '%s' (good are %s).",
                    title, join_names(names), good[0], ", ".join(good))  # fmt: skip
