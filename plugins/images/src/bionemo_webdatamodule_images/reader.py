"""The writer ``images``: copies image files as they are and takes their class from the folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bionemo.webdatamodule import Sample
from bionemo.webdatamodule.errors import ConfigError, InputError, count
from bionemo.webdatamodule.files import walk_files

_log = logging.getLogger("bionemo.webdatamodule")


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Reads image files below a directory as samples.

    A sample is named by its path below the directory without the extension, such as ``cats/tabby/0001``.
    Its fields are the file's bytes, untouched, under the extension in lower case, and the number of its class
    as decimal text under ``cls``. The class is the first folder of the path.
    Hidden files and folders are left out. Links to folders are followed, but not back into a folder they lie in.
    What is left out is logged.

    Args:
        directory: The directory.
        classes: Names of the class folders in the order of their numbers; by default all folders, sorted.
            Give it where training and evaluation data lie in different directories.
        label: Suffix of the class, or ``None`` for images without classes.
        suffix: One suffix for all images, whatever their extensions; by default each keeps its own.
        extensions: Which files are images; case does not matter.

    Raises:
        ConfigError: If an option is of the wrong type, or a class is named twice.
    """

    directory: str
    classes: Sequence[str] | None = None
    label: str | None = "cls"
    suffix: str | None = None
    extensions: Sequence[str] = ("bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp")

    def __post_init__(self) -> None:
        if isinstance(self.extensions, str) or isinstance(self.classes, str):
            raise ConfigError("classes and extensions are lists of names, not one string")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ConfigError(f"classes names a folder twice: {', '.join(self.classes)}")

    def names(self) -> Sequence[str]:
        """Return the name of every image, sorted.

        Raises:
            InputError: If there is none, two differ in nothing but the extension, or one is in no class.
        """
        numbers = self._numbers()
        paths = list(walk_files(self.directory, wanted=self._is_image))
        folders: dict[str, dict[str, list[str]]] = {}
        for path in paths:
            folder, _, file = path.rpartition("/")
            folders.setdefault(folder, {}).setdefault(Path(file).stem, []).append(file)
        found = [f"{folder}/{stem}".lstrip("/") for folder, images in folders.items() for stem in images]
        for name in found:
            self._only(name, folders[name.rpartition("/")[0]])
            self._class(name, numbers)
        if not found:
            raise InputError(f"no image was found; images end in {', '.join(self.extensions)}", file=self.directory)
        if empty := sorted(numbers.keys() - {name.partition("/")[0] for name in found}):
            _log.warning(
                "%s: no image of %s, first %s", self.directory, count(len(empty), "class", "classes"), empty[0]
            )
        return sorted(found)

    def fingerprints(self, names: Sequence[str]) -> Sequence[str]:
        """Return for each image its class, size and modification time; ``""`` where there is no such image."""
        numbers = self._numbers()
        listed: dict[str, dict[str, list[str]]] = {}
        marks = []
        for name in names:
            try:
                status = self._path(name, listed).stat()
                marks.append(f"{self._class(name, numbers)}-{status.st_size}-{status.st_mtime_ns}")
            except (InputError, OSError):  # noqa: PERF203 - one missing image must not hide the others
                marks.append("")
        return marks

    def __call__(self, names: Sequence[str]) -> Iterator[Sample]:
        """Yield the images of these names, in this order, one at a time.

        Raises:
            InputError: If there is no such image, or more than one.
        """
        numbers = self._numbers()
        listed: dict[str, dict[str, list[str]]] = {}
        for name in names:
            path = self._path(name, listed)
            files = {self.suffix or path.suffix[1:].lower(): path.read_bytes()}
            if self.label is not None:
                files[self.label] = str(self._class(name, numbers)).encode()
            yield Sample(name, files)

    def _path(self, name: str, listed: dict[str, dict[str, list[str]]]) -> Path:
        """Return the file of a name; a folder is listed once and kept in ``listed``."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name:
            raise InputError(f"{name!r} is not a path below the directory", key=name, file=self.directory)
        folder = str(Path(self.directory, path.parent))
        if folder not in listed:
            listed[folder] = self._images(folder)
        return Path(folder, self._only(name, listed[folder]))

    def _images(self, folder: str) -> dict[str, list[str]]:
        """Return the image files of a folder by their names without extension."""
        found: dict[str, list[str]] = {}
        if os.path.isdir(folder):  # noqa: PTH112 - a missing folder is a missing image, which is said by name
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self._is_image(entry.name) and not entry.name.startswith(".") and not entry.is_dir():
                        found.setdefault(Path(entry.name).stem, []).append(entry.name)
        return found

    def _is_image(self, file: str) -> bool:
        """Return whether a file is an image, by its name."""
        return Path(file).suffix[1:].lower() in {extension.lower().lstrip(".") for extension in self.extensions}

    def _only(self, name: str, images: dict[str, list[str]]) -> str:
        """Return the one file of a sample."""
        files = images.get(PurePosixPath(name).name, [])
        if not files:
            raise InputError(f"there is no image {name!r}", key=name, file=self.directory)
        if len(files) > 1:
            raise InputError(
                f"{' and '.join(sorted(files))} would both be the sample {name!r}; rename one",
                key=name,
                file=self.directory,
            )
        return files[0]

    def _numbers(self) -> dict[str, int]:
        """Return the number of each class."""
        if self.label is None:
            return {}
        if self.classes is None:
            try:
                with os.scandir(self.directory) as entries:
                    folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
            except OSError as error:
                raise InputError(f"the directory cannot be read: {error}", file=self.directory) from error
        else:
            folders = list(self.classes)
        return {folder: number for number, folder in enumerate(folders)}

    def _class(self, name: str, numbers: dict[str, int]) -> int | None:
        """Return the number of a sample's class, or ``None`` where classes are not asked for."""
        if self.label is None:
            return None
        parts = PurePosixPath(name).parts
        if len(parts) < 2 or parts[0] not in numbers:
            known = ", ".join(list(numbers)[:10])
            raise InputError(
                f"the image {name!r} is in the folder of no class ({known}); "
                "move it, name its folder in classes, or set label=None",
                key=name,
                file=self.directory,
            )
        return numbers[parts[0]]
