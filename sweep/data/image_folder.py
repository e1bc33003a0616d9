"""Your own images: a folder with one folder for each class, as torchvision's ImageFolder reads it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.samples import Samples
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MODES = {1: "L", 3: "RGB"}  # of Pillow, by the number of channels
_FEATURES = {1: ("grey",), 3: ("red", "green", "blue")}
_LARGEST = 255


def image_folder(
    path: str,
    size: int | Sequence[int] | None = None,
    channels: int = 3,
    augment: Sequence[Callable[[Any], Any]] | None = None,
) -> Samples:
    """Read images into memory; x: (N, channels, height, width) in float32, from 0 to 1.

    The folders below `path` are the classes, in alphabetical order. Images may lie in folders of their own below them.
    Names that begin with a dot, and files that are no images by their extension, are left out. Of a file with several
    frames, the first counts. Transparency is dropped.

    Args:
        path: the folder of the classes' folders.
        size: [height, width] to resize to, or one number for both; the aspect ratio is not kept. By default the images
            must all have the same size.
        channels: 1 for grey or 3 for colour; images are converted.
        augment: transforms that change training images at random, one after the other, as those of torchvision's v2 do.
            Each gets and returns a tensor (channels, height, width) of the values above.

    Raises:
        ConfigError: there are fewer than two classes, a class has no images, the images differ in size, or one cannot
            be read.
    """
    if channels not in _MODES:
        raise ConfigError("data.channels", f"must be 1 (grey) or 3 (colour), got {channels}")
    wanted = _height_and_width(size)
    for i, transform in enumerate(augment or []):
        if not callable(transform):
            raise ConfigError(f"data.augment.{i}", f"must be a node with a _target_, got {transform!r}")
    folder = Path(os.path.expanduser(path))
    files = {kind.name: _images_in(kind) for kind in _classes_in(folder)}
    paths = [file for of_class in files.values() for file in of_class]
    return Samples(
        name=folder.resolve().name,
        task="classification",
        x=_read_all(paths, wanted, channels),
        y=np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()]),
        features=_FEATURES[channels],
        classes=tuple(files),
        source=str(folder.resolve()),
        augment=InTurn(augment) if augment else None,
    )


class InTurn:
    """Functions that are called one after the other, as one that can be sent to another process."""

    def __init__(self, functions: Sequence[Callable[[Any], Any]]) -> None:
        """Name the functions."""
        self._functions = functions

    def __call__(self, value: Any) -> Any:
        """Return what the last function makes of the value."""
        for function in self._functions:
            value = function(value)
        return value


def _height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 1:
        raise ConfigError("data.size", f"must be a number of pixels >= 1, or [height, width], got {size}")
    return sides[0], sides[1]


def _classes_in(folder: Path) -> list[Path]:
    """Return the folders of the classes. Raises ConfigError if there are fewer than two."""
    if not folder.is_dir():
        what = f"'{folder}' is not a folder" if folder.exists() else f"no folder '{folder}'"
        raise ConfigError("data.path", f"{what} (looked in {Path.cwd()}); name one that has a folder for each class")
    try:
        found = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError("data.path", f"cannot read '{folder}': {one_line(error)}") from error
    if len(found) < 2:
        only = f"only the folder '{found[0].name}'" if found else "no folders"
        raise ConfigError("data.path", f"'{folder}' has {only}; it needs one for each class, two at least")
    return found


def _images_in(folder: Path) -> list[Path]:
    """Return the images in and below a class's folder. Raises ConfigError if there are none."""
    found = []
    for parent, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        images = (name for name in names if name.lower().endswith(_EXTENSIONS) and not name.startswith("."))
        found += [Path(parent, name) for name in sorted(images)]
    if not found:
        raise ConfigError(
            "data.path", f"the class '{folder}' has no images ({', '.join(_EXTENSIONS)}); add some, or remove it"
        )
    return found


def _read_all(paths: Sequence[Path], size: tuple[int, int] | None, channels: int) -> NDArray[np.float32]:
    """Return all images, (N, channels, height, width). Raises ConfigError if they differ in size and none is set."""
    first = _pixels(paths[0], size, channels)
    images = np.empty((len(paths), *first.shape), np.float32)
    for i, path in enumerate(paths):
        pixels = _pixels(path, size, channels)
        if pixels.shape != first.shape:
            (h, w), (other_h, other_w) = first.shape[1:], pixels.shape[1:]
            problem = f"'{paths[0]}' is {h} x {w} pixels (height x width), but '{path}' is {other_h} x {other_w}"
            raise ConfigError("data.size", f"{problem}; set data.size=[{h},{w}], or another size for all")
        images[i] = pixels
    images /= _LARGEST
    return images


def _pixels(path: Path, size: tuple[int, int] | None, channels: int) -> NDArray[np.uint8]:
    """Read one image, (channels, height, width). Raises ConfigError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as opened:
            mode, image = opened.mode, _converted(opened, size, _MODES[channels])
    except Exception as error:  # Pillow's decoders raise many kinds of errors
        raise ConfigError("data.path", f"cannot read the image '{path}': {one_line(error)}") from error
    if mode.startswith(("I", "F")):  # converting these would cut off values above 255
        raise ConfigError("data.path", f"'{path}' has more than 8 bits a channel (mode {mode}); save it with 8")
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def _converted(image: "Image", size: tuple[int, int] | None, mode: str) -> "Image":
    from PIL.Image import Resampling

    converted = image.convert(mode)
    return converted if size is None else converted.resize((size[1], size[0]), Resampling.BILINEAR)
