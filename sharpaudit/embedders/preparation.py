"""From a picture of any size to what a network takes: resized, cropped, scaled.

Two networks of one name with other preparations give vectors that cannot be compared, so a preparation is part of an
embedder's digest. Resizing is Pillow's, which also averages, as torchvision's transforms do on Pillow's pictures.

Shapes: N pictures, H W C a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sharpaudit.images import Pixels, resized

MAX_ASPECT = 20
"""A strip that is longer than so many times its width has no descriptor: to scale it would take gigabytes."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preparation:
    """side: in pixels. square: both sides become it, whatever the shape was; otherwise the shorter one, the longer in
    proportion. crop: the side of a square cut out of the middle afterwards. mean, std: of channels between 0 and 1.
    """

    side: int
    square: bool
    crop: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def one_size(self) -> bool:
        """Whether all pictures are of one size when prepared."""
        return self.square or self.crop is not None

    def cut(self, picture_HWC: Pixels) -> Pixels:
        """The picture as the network sees it, uint8, (H', W', 3)."""
        height, width = picture_HWC.shape[:2]
        # As torchvision does, down to what is cut off, so that a vector is that of the published preparation.
        tall, wide = (self.side if self.square else int(self.side * n / min(height, width)) for n in (height, width))
        made = resized(picture_HWC, tall, wide, self.interpolation)
        if self.crop is None:
            return made
        top, left = (round((n - self.crop) / 2) for n in (tall, wide))
        return made[top : top + self.crop, left : left + self.crop]

    def scaled(self, pictures_NHWC: Sequence[Pixels]) -> torch.Tensor:
        """Cut pictures of one size as the network takes them, float32, (N, 3, H', W')."""
        stacked = torch.from_numpy(np.stack(pictures_NHWC)).permute(0, 3, 1, 2).float().div(255)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (stacked - mean) / std
