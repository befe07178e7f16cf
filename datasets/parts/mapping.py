"""Own images in any layout: patterns that map files to their roles, or a CSV table.

Patterns are `role=pattern` pairs separated by semicolons, for example
`good={category}/good/*; defect={category}/bad/*; mask={category}/masks/{stem}_m.png`. Paths are relative to the folder
of the dataset. `*` and `?` match within a name, `**` any number of folders, `{category}`, `{defect}` and `{stem}` a
name, which is then the category, the defect type or the image that a mask belongs to. Patterns are tried in their
order; the first that matches is used.

Roles: `train` good training images; `good` good test images, or, without `train`, good images of which a quarter is
drawn as test images; `defect` defective test images; `test` test images, good or defective by `{defect}`; `mask` masks.
A file that is named as the mask of an image next to it (`000_mask.png`), or is in a folder called masks below a folder
of defective images, is a mask, whatever pattern matches it.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from bench.dataset import GOOD, Sample, Split
from bench.errors import BenchError, check_known

from .files import (
    MAX_DEPTH,
    absolute,
    all_files,
    deeper_images,
    is_image,
    join_names,
    log,
    nfc,
    second_names,
    special_files,
    subfolders,
)
from .labels import BAD_NAMES, GOOD_NAMES, is_good_name, lower_name, warn_resembles_good
from .layout import check_unique
from .masks import adjacent_masks, image_stem, in_mask_folder

ROLES = ("train", "good", "defect", "test", "mask")

TEST_FRACTION = 4
"""One of this many good images is a test image if the layout does not state the split."""

COLUMNS = ("image", "split", "label", "mask", "category")


class _Row(NamedTuple):
    """One image. `split` is "" if it is unknown."""

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
    rows = (
        _read_csv(root, Path(layout).expanduser()) if layout.lower().endswith(".csv") else _match_patterns(root, layout)
    )
    samples = [_sample(row) for row in _draw_splits(rows)]
    warn_resembles_good(root.name, (sample.defect for sample in samples if sample.is_anomalous))
    without_training = {row.category for row in rows} - {
        sample.category for sample in samples if sample.split == "train"
    }
    if without_training or not samples:
        missing = join_names(sorted(without_training)) or "any category"
        raise BenchError(
            f"{title} needs good training images; --layout finds none for {missing} in {root}. Check its patterns, for "
            f"example train={{category}}/train/*."
        )
    check_unique(samples)
    return sorted(
        samples, key=lambda each: (each.category, each.split == "test", each.defect, each.folder, each.image.name)
    )


def propose_layout(root: Path) -> str:
    """Return the layout for folders of good and of defective images without a split, or "" if there are none."""
    for prefix, folder in (("", absolute(root)), *(("{category}/", path) for path in subfolders(root))):
        names = {lower_name(path.name): path.name for path in subfolders(folder) if any(map(is_image, all_files(path)))}
        good = next((names[name] for name in sorted(names.keys() & set(GOOD_NAMES))), "")
        bad = [names[name] for name in sorted(names) if name not in GOOD_NAMES and name not in {"train", "test"}]
        masks = [name for name in bad if name.lower() in {"mask", "masks", "gt", "ground_truth", "labels"}]
        bad = [name for name in bad if name not in masks]
        if good and bad:
            roles = [f"good={prefix}{good}/**/*"]
            roles += [f"mask={prefix}{name}/**/*" for name in masks]
            general = [name for name in bad if lower_name(name) in BAD_NAMES]
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
    unused = [nfc(path.relative_to(root).as_posix()) for path in special_files(root)]
    for path in all_files(root):
        name = nfc(path.relative_to(root).as_posix())
        role, groups = next(
            ((role, match.groupdict()) for role, match in ((role, find(name)) for role, find in patterns) if match),
            ("", {}),
        )
        if not is_image(path) or not role:
            unused.append(name)
        elif role == "mask":
            masks.append((path, {name: text for name, text in groups.items() if name != "folder"}))
        else:
            defect = "" if role in {"train", "good"} else groups.get("defect") or _defect_of(path)
            is_good = not defect or (role == "test" and is_good_name(defect))
            split = {"train": "train", "good": "test" if has_train else ""}.get(role, "test")
            category = groups.get("category") or nfc(root.name)
            rows.append(_Row(path, category, split, GOOD if is_good else defect, (), groups.get("folder") or ""))
    if unused:
        log.warning("%s: %d files match no pattern of the layout and are not used: %s.",
                    root.name, len(unused), join_names(unused))  # fmt: skip
    deeper = deeper_images(root)
    if deeper:
        log.warning("%s: %d images in more than %d levels of subfolders are not used, for example %s. Pass a folder "
                    "nearer to them with --data.",
                    root.name, len(deeper), MAX_DEPTH, deeper[0].relative_to(root).as_posix())  # fmt: skip
    if skipped := second_names(root):
        log.warning("%s: not used, because they are other names of folders that are read: %s.",
                    root.name, join_names(path.relative_to(root).as_posix() for path in skipped))  # fmt: skip
    rows, adjacent = _separate_masks(rows)
    return _attach_masks(rows, masks + adjacent, root)


def _separate_masks(rows: Sequence[_Row]) -> tuple[list[_Row], list[tuple[Path, dict[str, str]]]]:
    """Return the rows that are images, and the masks that patterns of images match, each with its category."""
    adjacent = adjacent_masks([row.image for row in rows])
    images: list[_Row] = []
    masks: list[tuple[Path, dict[str, str]]] = []
    for row in rows:
        if row.image in adjacent:
            masks.append((row.image, {"category": row.category, "defect": row.defect, "folder": row.folder}))
        elif row.defect != GOOD and in_mask_folder(row.folder.split("/")):
            masks.append((row.image, {"category": row.category}))
        else:
            images.append(row)
    return images, masks


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
    return re.compile(regex, re.DOTALL).fullmatch  # a name may have newlines


def _attach_masks(rows: Sequence[_Row], masks: Sequence[tuple[Path, dict[str, str]]], root: Path) -> list[_Row]:
    """Return the rows with their masks: those of the same name, category, defect and folder if given."""
    masks_by_row: dict[int, list[Path]] = {}
    unused = []
    by_name: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.defect != GOOD:
            by_name.setdefault(nfc(row.image.stem), []).append(index)
    for path, groups in masks:
        stem = groups.get("stem") or image_stem(path.stem) or ""
        candidates = by_name.get(stem) or by_name.get(nfc(path.stem), [])
        for key in ("category", "defect", "folder"):
            if key in groups:
                candidates = [index for index in candidates if getattr(rows[index], key) == groups[key]]
        if len(candidates) == 1:
            masks_by_row.setdefault(candidates[0], []).append(path)
        else:
            unused.append(path.relative_to(root).as_posix())
    if unused:
        log.warning("%s: %d masks belong to no image or to several, and are not used: %s.",
                    root.name, len(unused), join_names(unused))  # fmt: skip
    return [row._replace(masks=tuple(sorted(masks_by_row.get(index, ())))) for index, row in enumerate(rows)]


def _read_csv(root: Path, table: Path) -> list[_Row]:
    """Return the images of a table with the columns image and label, and optionally split, mask and category."""
    table = table if table.is_file() else root / table
    rows = []
    lines: dict[tuple[str, Path], int] = {}
    for number, row in _table_rows(table):
        split, label = row["split"].lower(), row["label"]
        if split not in {"", "train", "test"}:
            raise BenchError(f"split must be train, test or empty; line {number} of {table} has '{split}'. Correct it.")
        is_good = is_good_name(label)
        defect = GOOD if is_good else "defect" if label == "1" else nfc(label)
        if not label or (split == "train" and not is_good):
            raise BenchError(
                f"label must be good or the type of a defect, and train must have good images only; line {number} of "
                f"{table} has label '{label}' and split '{split}'. Correct it."
            )
        names = filter(None, map(str.strip, row["mask"].split("|")))
        masks = tuple(dict.fromkeys(_existing(root, table, name)[0] for name in names))
        category = nfc(row["category"] or absolute(root).name)
        image, folder = _existing(root, table, row["image"])
        other = lines.setdefault((category, image), number)
        if other != number:
            raise BenchError(
                f"An image must be in one line; lines {other} and {number} of {table} both name {image.name}. Remove "
                f"one; separate several masks of an image by |."
            )
        rows.append(_Row(image, category, split or ("" if is_good else "test"), defect, masks, folder))
    _warn_unlisted_images(root, table, rows)
    return _check_masks(rows, table)


def _warn_unlisted_images(root: Path, table: Path, rows: Sequence[_Row]) -> None:
    """Log a warning with the images of the dataset's folder that a table does not name, and so are not used."""
    listed = {path.resolve() for row in rows for path in (row.image, *row.masks)}
    images = [*filter(is_image, all_files(root)), *deeper_images(root)]
    unused = [path for path in images if path.resolve() not in listed]
    if unused:
        names = join_names(path.relative_to(root).as_posix() for path in unused)
        log.warning("%s: %d images of %s are not in the table and are not used: %s.",
                    table.name, len(unused), root.name, names)  # fmt: skip


def _table_rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line of a table that is not empty, and its values by `COLUMNS`."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            lines = [(reader.line_num, values) for values in reader if any(map(str.strip, values))]
    except (OSError, ValueError, csv.Error) as error:
        raise BenchError(
            f"--layout must be a readable CSV file in UTF-8; {table} is not ({error}). Correct the path or the file."
        ) from error
    _check_columns(header, table)
    for number, values in lines:
        if len(values) > len(header):
            raise BenchError(
                f"A line must have as many values as the first one, {len(header)}; line {number} of {table} has "
                f"{len(values)}. Quote names with commas, and separate several masks by |."
            )
        yield number, dict.fromkeys(COLUMNS, "") | dict(zip(header, map(str.strip, values), strict=False))


def _check_columns(header: Sequence[str], table: Path) -> None:
    """Raise BenchError for missing, repeated and misspelled columns; log a warning with the others that are unused."""
    if not {"image", "label"} <= set(header):
        raise BenchError(
            f"{table} must have the columns image and label, and may have split, mask and category; it has "
            f"{', '.join(sorted(set(header))) or 'none'}. Rename or add them; save it with commas."
        )
    for name in COLUMNS:
        if header.count(name) > 1:
            raise BenchError(f"A column must be there once; {table} has {name} {header.count(name)} times. Remove one.")
    unused = [name for name in header if name and name not in COLUMNS]
    for name in unused:
        close = get_close_matches(name, [column for column in COLUMNS if column not in header], 1, 0.7)
        if close:
            raise BenchError(f"'{name}' is not a column of {table}. Did you mean '{close[0]}'? Rename or remove it.")
    if unused:
        log.warning("%s: the columns %s are not used; known are %s.",
                    table.name, join_names(unused), ", ".join(COLUMNS))  # fmt: skip


def _check_masks(rows: Sequence[_Row], table: Path) -> list[_Row]:
    """Return the rows of a table without masks of good images; log a warning for these and for shared masks.

    Raises:
        BenchError: a mask is an image of the table.
    """
    images = {row.image for row in rows}
    counts = Counter(path for row in rows if row.defect != GOOD for path in row.masks)
    wrong = [path.name for path in counts if path in images]
    if wrong:
        raise BenchError(f"Masks must not be images of {table}; {join_names(wrong)} are. Correct the column mask.")
    shared = [path.name for path, count in counts.items() if count > 1]
    if shared:
        log.warning("%s: %d masks belong to several images each: %s.", table.name, len(shared), join_names(shared))
    with_masks = [row.image.name for row in rows if row.defect == GOOD and row.masks]
    if with_masks:
        log.warning("%s: the masks of %d good images are not used: %s.",
                    table.name, len(with_masks), join_names(with_masks))  # fmt: skip
    return [row if row.defect != GOOD else row._replace(masks=()) for row in rows]


def _existing(root: Path, table: Path, name: str) -> tuple[Path, str]:
    """Return a file that a table names, relative to the dataset's folder or to the table, and its folder below these.

    The folder of a file outside both is the name of its folder, because ids are stored and have no private paths.
    """
    for base in (root, table.parent):
        path, above = absolute(base / name), absolute(base)
        if name and path.is_file():
            folder = path.parent.relative_to(above).as_posix() if path.is_relative_to(above) else path.parent.name
            return path, nfc("" if folder == "." else folder)
    raise BenchError(f"{table} must name files relative to {root} or to itself; {name} does not exist. Correct it.")


def _draw_splits(rows: Sequence[_Row]) -> Iterator[_Row]:
    """Yield the rows with the split of each good image that has none: by a hash of its name, a quarter are tests."""
    without_split: dict[str, list[_Row]] = {}
    for row in rows:
        if row.split:
            yield row
        else:
            without_split.setdefault(row.category, []).append(row)
    for category, members in without_split.items():
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
    return "defect" if lower_name(name) in BAD_NAMES else name
