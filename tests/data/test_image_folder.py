import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import refusals
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from torch import Tensor

from sweep import ConfigError, Samples, compose
from sweep.config.schema import validate
from sweep.data.image_folder import image_folder
from sweep.trial import binding
from sweep.trial.prepare import load_samples


def refusal(*arguments, **named) -> ConfigError:
    return refusals.refusal(lambda: image_folder(*arguments, **named))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two red cats of 2 x 3 pixels, of which one lies in a folder of its own, and a blue dog."""
    red, blue = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    red[..., 0], blue[..., 2] = 255, 51
    red[0, 2] = [10, 20, 30]
    save(tmp_path / "pets" / "cat" / "b.png", red)
    save(tmp_path / "pets" / "cat" / "a" / "deep.PNG", red)
    save(tmp_path / "pets" / "dog" / "c.bmp", blue)
    return tmp_path / "pets"


def test_folders_are_classes_and_images_are_arrays_from_0_to_1(pets: Path):
    made = image_folder(str(pets))
    assert (made.task, made.name, made.classes, made.source) == ("classification", "pets", ("cat", "dog"), str(pets))
    assert (made.x.shape, made.x.dtype, made.features) == ((3, 3, 2, 3), np.float32, ("red", "green", "blue"))
    assert made.y.tolist() == [0, 0, 1]
    assert_allclose(made.x[0, :, 0, 2] * 255, [10, 20, 30], rtol=1e-6)
    assert_allclose(made.x[0, :, 1, 0], [1, 0, 0])
    assert_allclose(made.x[2, :, 0, 0], [0, 0, 0.2])


def test_images_may_be_grey(pets: Path):
    made = image_folder(str(pets), channels=1)
    assert (made.x.shape, made.features) == ((3, 1, 2, 3), ("grey",))
    assert_allclose(made.x[0, 0, 1, 0] * 255, round(0.299 * 255))  # the luma of ITU-R 601


def test_images_are_resized_to_height_and_width(pets: Path):
    save(pets / "dog" / "large.png", np.full((40, 30, 3), 51))
    assert image_folder(str(pets), size=[4, 5]).x.shape == (4, 3, 4, 5)
    made = image_folder(str(pets), size=4)
    assert made.x.shape == (4, 3, 4, 4)
    assert_allclose(made.x[3], 0.2)


def test_other_files_and_hidden_ones_are_left_out(pets: Path):
    expected = image_folder(str(pets))
    for name in ("Thumbs.db", "cat/notes.txt", "cat/.hidden.png", ".ipynb_checkpoints/x.png", "dog/.cache/x.png"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_text("no image")
    assert_array_equal(image_folder(str(pets)).x, expected.x)


def test_images_of_several_sizes_need_a_size(pets: Path):
    save(pets / "dog" / "d.png", np.zeros((4, 5, 3)))
    error = refusal(str(pets))
    assert error.key == "data.size"
    assert f"'{pets}/cat/b.png' is 2 x 3 pixels (height x width), but '{pets}/dog/d.png' is 4 x 5" in error.problem
    assert "set data.size=[2,3]" in error.problem


def test_an_image_that_cannot_be_read_is_named(pets: Path):
    whole = (pets / "cat" / "b.png").read_bytes()
    for content in (b"no image", b"", whole[: len(whole) // 2]):
        (pets / "cat" / "b.png").write_bytes(content)
        error = refusal(str(pets))
        assert error.key == "data.path"
        assert error.problem.startswith(f"cannot read the image '{pets}/cat/b.png': ")


def test_an_image_of_16_bits_is_refused_rather_than_cut(pets: Path):
    Image.fromarray(np.full((2, 3), 40_000, np.uint16)).save(pets / "cat" / "deep.png")
    assert "deep.png' has more than 8 bits a channel" in refusal(str(pets), channels=1).problem


def test_folders_that_are_no_classes_are_refused(pets: Path, tmp_path: Path):
    error = refusal(str(tmp_path / "none"))
    assert error.key == "data.path"
    assert error.problem.startswith(f"no folder '{tmp_path}/none' (looked in ")
    assert "b.png' is not a folder" in refusal(str(pets / "cat" / "b.png")).problem
    assert "has no folders; it needs one for each class" in refusal(str(pets / "dog")).problem
    (pets / "empty").mkdir()
    assert f"the class '{pets}/empty' has no images (.bmp, " in refusal(str(pets)).problem


@pytest.mark.parametrize(("size", "channels", "key"), [(0, 3, "size"), ([4], 3, "size"), (4, 2, "channels")])
def test_odd_settings_are_refused(size, channels: int, key: str, pets: Path):
    assert refusal(str(pets), size=size, channels=channels).key == f"data.{key}"


V2 = "torchvision.transforms.v2"


class Mirror:
    """A transform of one's own: mirrors an image with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        if p > 1:
            raise ValueError("p is a probability")
        self.p = p

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(()) < self.p else image


MIRROR = f"{__name__}.Mirror"


@pytest.fixture(autouse=True)
def _allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")


def load(pets: Path, augment: str, *more: str) -> Samples:
    overrides = ["data=image_folder", f"data.path={pets}", "data.size=4", f"data.augment={augment}", *more]
    samples = load_samples(validate(compose(overrides)))
    assert isinstance(samples, Samples)
    return samples


def mirrored_row(samples: Samples) -> list[float]:
    assert samples.augment is not None
    x = torch.from_numpy(samples.x[2])
    x[0, 0] = torch.arange(4)
    return samples.augment(x)[0, 0].tolist()


def test_transforms_follow_one_another(pets: Path):
    samples = load(pets, f"[{{_target_: {MIRROR}, p: 1}}, {{_target_: {MIRROR}, p: 0}}]")
    assert mirrored_row(samples) == [3, 2, 1, 0]
    assert mirrored_row(pickle.loads(pickle.dumps(samples))) == [3, 2, 1, 0]  # as it goes to workers
    assert mirrored_row(load(pets, f"[{{_target_: {MIRROR}, p: 1}}, {{_target_: {MIRROR}, p: 1}}]")) == [0, 1, 2, 3]
    assert load(pets, "null").augment is None
    assert load(pets, "[]").augment is None


def test_transforms_of_torchvision_need_no_vouching(pets: Path, monkeypatch: pytest.MonkeyPatch):
    try:
        importlib.import_module(V2)
    except (ImportError, RuntimeError) as error:  # the latter if it was built for another torch
        pytest.skip(f"torchvision: {error}")
    monkeypatch.delenv("SWEEP_TARGETS")
    transforms = (f"{{_target_: {V2}.{name}}}" for name in ("RandomHorizontalFlip, p: 1", "RandomCrop, size: 4"))
    assert mirrored_row(load(pets, f"[{', '.join(transforms)}]")) == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("augment", "key", "says"),
    [
        (f"[{{_target_: {MIRROR}, pp: 1}}]", "data.augment.0.pp", "Mirror takes no such argument; it takes: p"),
        (f"[{{_target_: {MIRROR}, p: much}}]", "data.augment.0.p", "must be a number, got 'much'"),
        (f"[{{_target_: {MIRROR}, p: 3}}]", "data.augment.0.p", "p is a probability"),
        (f"[{{_target_: {MIRROR}s}}]", "data.augment.0._target_", f"cannot load '{MIRROR}s': "),
        (f"[{MIRROR}]", "data.augment.0", f"must be a node with a _target_, got '{MIRROR}'"),
        (f"{{_target_: {MIRROR}}}", "data.augment", "must be a list"),
        ("[{_target_: mypkg.Blur}]", "data.augment.0._target_", "'mypkg.Blur' is not an allowed target; if you trust"),
    ],
)
def test_a_transform_that_cannot_be_made_is_one_line(augment: str, key: str, says: str, pets: Path):
    with pytest.raises(ConfigError) as error:
        load(pets, augment)
    assert error.value.key == key
    assert says in error.value.problem
    assert "\n" not in str(error.value)


def test_without_torchvision_a_line_says_how_to_install_it(pets: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(binding, "find_spec", lambda name: None)
    binding.located.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ConfigError) as error:
        load(pets, f"[{{_target_: {V2}.RandomHorizontalFlip}}]")
    assert error.value.key == "data.augment.0._target_"
    what = "torchvision is not installed; pip install 'hydra-sweep[images]'"
    assert error.value.problem == f"cannot load '{V2}.RandomHorizontalFlip': {what}"
