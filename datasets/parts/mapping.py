"""Own images in any layout: patterns that map files to their roles, or a CSV table.

Patterns are `role=pattern` pairs separated by semicolons, for example
`good={category}/good/*; defect={category}/bad/*; mask={category}/masks/{stem}_m.png`. Paths are relative to the data
set's folder. `*` and `?` match within a name, `**` any number of folders, `{category}`, `{defect}` and `{stem}` a name,
which is then the category, the defect type or the image that a mask belongs to. Patterns are tried in their order; the
first that matches counts.

Roles: `train` good training images; `good` good test images, or, without `train`, good images of which a quarter is
drawn as test images; `defect` defective test images; `test` test images, good or defective by `{defect}`; `mask` masks.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError, check_known

from .files import absolute, all_files, is_image, join_names, log, nfc, subfolders
from .layout import check_unique
from .masks import image_stem

ROLES = ("train", "good", "defect", "test", "mask")

GOOD_NAMES = frozenset({"good", "ok", "normal", "pass", "0"})
"""Names of folders and labels of good images, in lower case."""

BAD_NAMES = frozenset({"bad", "ng", "nok", "ko", "defect", "defects", "defective", "anomaly", "anomalous", "fail", "1"})
"""Names of folders of defective images of any type, in lower case."""

TEST_FRACTION = 4
"""One of so many good images is a test image if the layout does not say which are."""

COLUMNS = ("image", "split", "label", "mask", "category")


class _Row(NamedTuple):
    """One image. `split` is "" if it is to be drawn."""

    image: Path
    category: str
    split: str
    defect: str
    masks: tuple[Path, ...] = ()
    folder: str = ""


def list_by_layout(root: Path, layout: str, title: str) -> list[Sample]:
    """List the images of `root` by patterns, or by a CSV table if `layout` ends in .csv.

    Logs a warning for files that no pattern matches and for masks without image.

    Raises:
        BenchError: the layout is invalid, or no category has training images.
    """
    rows = _read_csv(root, Path(layout)) if layout.lower().endswith(".csv") else _match_patterns(root, layout)
    samples = [_sample(row) for row in _draw_splits(rows)]
    without = {row.category for row in rows} - {sample.category for sample in samples if sample.split == "train"}
    if without or not samples:
        missing = join_names(sorted(without)) or "any category"
        raise BenchError(
            f"{title} needs good training images; --layout finds none for {missing} in {root}. Check its patterns, for "
            f"example train={{category}}/train/*."
        )
    check_unique(samples)
    return sorted(samples, key=lambda one: (one.category, one.split == "test", one.defect, one.folder, one.image.name))


def propose_layout(root: Path) -> str:
    """Return the layout for folders of good and of defective images without a split, or "" if there are none."""
    for prefix, folder in (("", absolute(root)), *(("{category}/", path) for path in subfolders(root))):
        names = {path.name.lower(): path.name for path in subfolders(folder) if any(map(is_image, all_files(path)))}
        good = next((names[name] for name in sorted(GOOD_NAMES & names.keys())), "")
        bad = [names[name] for name in sorted(names) if name not in GOOD_NAMES and name not in {"train", "test"}]
        masks = [name for name in bad if name.lower() in {"mask", "masks", "gt", "ground_truth", "labels"}]
        bad = [name for name in bad if name not in masks]
        if good and bad:
            roles = [f"good={prefix}{good}/**/*"]
            roles += [f"mask={prefix}{name}/**/*" for name in masks]
            general = [name for name in bad if name.lower() in BAD_NAMES]
            roles += [f"defect={prefix}{name}/**/*" for name in general]
            roles += [f"defect={prefix}{{defect}}/**/*"] if len(general) < len(bad) else []
            return "; ".join(roles)
    return ""


def _match_patterns(root: Path, layout: str) -> list[_Row]:
    patterns = _parse(layout)
    has_train = any(role == "train" for role, _ in patterns)
    root = absolute(root)
    rows: list[_Row] = []
    masks: list[tuple[Path, dict[str, str]]] = []
    unused: list[str] = []
    for path in all_files(root):
        name = nfc(path.relative_to(root).as_posix())
        role, groups = next(
            ((role, match.groupdict()) for role, match in ((role, find(name)) for role, find in patterns) if match),
            ("", {}),
        )
        if not is_image(path) or not role:
            unused.append(name)
        elif role == "mask":
            masks.append((path, groups))
        else:
            defect = "" if role in {"train", "good"} else groups.get("defect") or _defect_of(path)
            is_good = not defect or (role == "test" and defect.lower() in GOOD_NAMES)
            split = {"train": "train", "good": "test" if has_train else ""}.get(role, "test")
            category = groups.get("category") or nfc(root.name)
            rows.append(_Row(path, category, split, GOOD if is_good else defect, (), groups.get("folder") or ""))
    if unused:
        log.warning("%s: %d files match no pattern of the layout and are not used: %s.",
                    root.name, len(unused), join_names(unused))  # fmt: skip
    return _attach_masks(rows, masks, root)


def _parse(layout: str) -> list[tuple[str, Callable[[str], "re.Match[str] | None"]]]:
    """Return role and matching function of each pattern, in the order of the text."""
    patterns = []
    for part in filter(None, (text.strip() for text in layout.split(";"))):
        role, equals, pattern = (text.strip() for text in part.partition("="))
        if not equals or not pattern:
            raise BenchError(
                f"A layout must be role=pattern pairs separated by semicolons, or the path of a .csv file; got "
                f"'{part}'. Pass for example --layout 'good=good/*; defect=bad/*'."
            )
        check_known([role], ROLES, "a role of --layout")
        if role == "test" and "{defect}" not in pattern:
            raise BenchError(f"A pattern of test must contain {{defect}}, got '{pattern}'. Use good= and defect=.")
        patterns.append((role, _compile(pattern)))
    if not patterns:
        raise BenchError("A layout must have at least one role=pattern pair, got none. Pass --layout 'good=*'.")
    return patterns


def _compile(pattern: str) -> Callable[[str], "re.Match[str] | None"]:
    """Return the function that matches a relative path."""
    text = nfc(pattern).removeprefix("./")
    text += "*" if text.endswith("/") else ""
    regex, seen = "", set[str]()
    for part in re.split(r"(\*\*/|\*|\?|\{[a-z]+\})", text):
        if part == "**/":
            name = "folder" if "folder" not in seen else ""
            seen.add("folder")
            regex += f"(?:(?P<{name}>.+)/)?" if name else "(?:.+/)?"
        elif part in {"*", "?"}:
            regex += "[^/]*" if part == "*" else "[^/]"
        elif part.startswith("{"):
            name = part[1:-1]
            check_known([name], ("category", "defect", "stem"), "a placeholder of --layout")
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+)"
            seen.add(name)
        else:
            regex += re.escape(part)
    return re.compile(regex).fullmatch


def _attach_masks(rows: Sequence[_Row], masks: Sequence[tuple[Path, dict[str, str]]], root: Path) -> list[_Row]:
    """Return the rows with their masks: those of the same category, defect and name, as far as the pattern has them."""
    found: dict[int, list[Path]] = {}
    unused = []
    by_name: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.defect != GOOD:
            by_name.setdefault(nfc(row.image.stem), []).append(index)
    for path, groups in masks:
        stem = groups.get("stem") or image_stem(path.stem) or ""
        candidates = by_name.get(stem) or by_name.get(nfc(path.stem), [])
        for key in ("category", "defect"):
            if groups.get(key):
                candidates = [index for index in candidates if getattr(rows[index], key) == groups[key]]
        if len(candidates) == 1:
            found.setdefault(candidates[0], []).append(path)
        else:
            unused.append(path.relative_to(root).as_posix())
    if unused:
        log.warning("%s: %d masks belong to no image or to several, and are not used: %s.",
                    root.name, len(unused), join_names(unused))  # fmt: skip
    return [row._replace(masks=tuple(sorted(found.get(index, ())))) for index, row in enumerate(rows)]


def _read_csv(root: Path, table: Path) -> list[_Row]:
    """Return the images of a table with the columns image and label, and optionally split, mask and category."""
    table = table if table.is_file() else root / table
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(
            f"--layout must be a readable CSV file; {table} is not ({error}). Correct the path."
        ) from error
    columns = set(reader.fieldnames or ())
    if not {"image", "label"} <= columns:
        raise BenchError(
            f"{table} must have the columns image and label, and may have split, mask and category; it has "
            f"{', '.join(sorted(columns)) or 'none'}. Rename or add them; save it with commas."
        )
    listed = []
    for number, row in enumerate(rows, start=2):
        split, label = row.get("split", "").lower(), row["label"]
        if split not in {"", "train", "test"}:
            raise BenchError(f"split must be train, test or empty; line {number} of {table} has '{split}'. Correct it.")
        is_good = label.lower() in GOOD_NAMES
        defect = GOOD if is_good else "defect" if label == "1" else nfc(label)
        if not label or (split == "train" and not is_good):
            raise BenchError(
                f"label must be good or the type of a defect, and train must have good images only; line {number} of "
                f"{table} has label '{label}' and split '{split}'. Correct it."
            )
        masks = tuple(_existing(root, table, name.strip()) for name in row.get("mask", "").split("|") if name.strip())
        category = nfc(row.get("category") or absolute(root).name)
        image = _existing(root, table, row["image"])
        place = Path(row["image"]).parent.as_posix()
        folder = "" if place == "." else nfc(place.strip("/"))
        listed.append(
            _Row(image, category, split or ("" if is_good else "test"), defect, () if is_good else masks, folder)
        )
    return listed


def _existing(root: Path, table: Path, name: str) -> Path:
    """Return a file that a table names, relative to the data set's folder or to the table."""
    for path in (root / name, table.parent / name):
        if path.is_file():
            return path
    raise BenchError(f"{table} must name files relative to {root} or to itself; {name} does not exist. Correct it.")


def _draw_splits(rows: Sequence[_Row]) -> Iterator[_Row]:
    """Yield the rows with the split of each good image that has none: by a hash of its name, a quarter are tests."""
    undecided: dict[str, list[_Row]] = {}
    for row in rows:
        if row.split:
            yield row
        else:
            undecided.setdefault(row.category, []).append(row)
    for category, members in undecided.items():
        ordered = sorted(members, key=lambda row: sha256(_draw_key(row).encode(errors="surrogateescape")).digest())
        count = len(ordered) // TEST_FRACTION
        log.warning("%s: the layout gives no split; %d of %d good images are drawn as test images by a hash of their "
                    "names.", category, count, len(ordered))  # fmt: skip
        for index, row in enumerate(ordered):
            yield row._replace(split="test" if index < count else "train")


def _draw_key(row: _Row) -> str:
    return f"split/{row.category}/{row.folder}/{nfc(row.image.stem)}"


def _sample(row: _Row) -> Sample:
    split: Split = "train" if row.split == "train" else "test"
    return Sample(row.image, row.category, split, row.defect, row.masks, row.folder)


def _defect_of(path: Path) -> str:
    """Return the defect type of an image whose pattern has none: its folder's name, or "defect" if that is general."""
    name = nfc(path.parent.name)
    return "defect" if name.lower() in BAD_NAMES else name
