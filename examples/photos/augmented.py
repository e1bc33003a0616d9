"""Photos that are turned, mirrored and moved at random while a model trains on them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from sweep import Datasets


class Photos(Dataset):
    def __init__(self, paths, classes, augment=False):
        self.paths, self.classes, self.augment = paths, classes, augment

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = torch.from_numpy(np.array(Image.open(self.paths[i]))).permute(2, 0, 1) / 255 - 0.5
        if self.augment:
            turn, mirror, down, right = torch.randint(4, (4,)).tolist()  # drawn from the trial's seed
            image = torch.rot90(image.roll((down, right), dims=(1, 2)), turn, dims=(1, 2))
            image = image.flip(2) if mirror % 2 else image
        return image, self.classes.index(self.paths[i].parent.name)


def photos(path, augment=True):
    paths = sorted(Path(path).glob("*/*.png"), key=lambda p: (int(p.stem), p.parent.name))
    classes = sorted({p.parent.name for p in paths})
    parts = {"train": paths[:50], "val": paths[50:90], "test": paths[90:]}
    sets = {part: Photos(of_part, classes, augment and part == "train") for part, of_part in parts.items()}
    return Datasets(**sets, task="classification", classes=tuple(classes), name="photos")
