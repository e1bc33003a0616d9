"""Draw photos/: 150 pictures of leaves and stones, in a folder for each."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

random.seed(0)
for kind in ("leaf", "stone"):
    Path("photos", kind).mkdir(parents=True, exist_ok=True)
    for i in range(75):
        image = Image.new("RGB", (24, 24), tuple(random.choices(range(100), k=3)))
        x, y, size, color = (
            *random.choices(range(1, 10), k=2),
            random.randint(9, 13),
            random.choices(range(150, 256), k=3),
        )
        if kind == "leaf":
            ImageDraw.Draw(image).polygon([(x, y + size), (x + size, y + size // 2), (x + 3, y)], fill=tuple(color))
        else:
            ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=tuple(color))
        image = image.rotate(90 * random.randrange(4))
        image.save(f"photos/{kind}/{i}.png")
