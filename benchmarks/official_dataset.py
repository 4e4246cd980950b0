"""The paper's own data pipeline, rewritten step by step: what ours is compared with.

Follows `OpenImageDataset` of the official repository (Fantasy-Studio/Paint-by-Example,
`ldm/data/open-images.py`) with the same libraries in the same order, detours included: the photo is
decoded by Pillow and again by OpenCV, a curve is evaluated six times for each of its points, and
masks are made at the size of the photo. `make peers` installs what it needs.

What a reader may not expect, all of it kept here:

* Box edges are cut to whole pixels, towards zero; of a photo's boxes one is drawn at random.
* The square crop needs two places to choose from along the photo's longer side. So square photos,
  and photos whose box touches an end of the longer side, are squashed whole, without zoom.
* Pixel amounts do not depend on the size of the photo.
* Pillow's pixels are not turned by EXIF, OpenCV's are: a turned photo gets a wrong exemplar.
* "ElasticTransform" draws its generator's seed from 0 .. 10,000: so many affine maps there are.
* The resize of its time (torchvision 0.12, tensors) does not antialias.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import bezier
import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset
from torchvision import transforms as T

Box = list[int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside."""

FOLDERS = [f"train_{digit}" for digit in "0123456789abcdef"]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def import_albumentations() -> Any:
    """Import albumentations 0.4.3 without the libraries that only its other transforms use.

    It imports imgaug, which fails with numpy 2, and scikit-image; neither is called for the
    transforms of the paper. Empty modules stand in for them while it loads.
    """
    if "albumentations" not in sys.modules:
        stand_ins = {
            "imgaug": {"augmenters": None},
            "skimage": {},
            "skimage.measure": {"label": None},
        }
        added = {name: ModuleType(name) for name in stand_ins if name not in sys.modules}
        for name, module in added.items():
            vars(module).update(stand_ins[name])
        sys.modules.update(added)
        try:
            import albumentations  # noqa: F401
        finally:
            for name in added:
                del sys.modules[name]
    return sys.modules["albumentations"]


A = import_albumentations()


def exemplar_transform() -> Any:
    """The augmentation of exemplars: `transform(image=...)["image"]`, (224, 224, 3) uint8."""
    return A.Compose(
        [
            A.Resize(height=224, width=224),
            A.HorizontalFlip(p=0.5),
            A.Rotate(limit=20),
            A.Blur(p=0.3),
            A.ElasticTransform(p=0.3),
        ]
    )


def padded(box: Box, width: int, height: int) -> Box:
    """The box with 10 pixels around it, inside the photo."""
    x0, y0, x1, y1 = box
    return [
        x0 - min(10, x0),
        y0 - min(10, y0),
        x1 + min(10, width - x1),
        y1 + min(10, height - y1),
    ]


def extended(box: Box, width: int, height: int) -> Box:
    """The box with each side moved outwards by up to 0.4 of the space there."""
    x0, y0, x1, y1 = box
    left = x0 - random.randint(0, int(0.4 * x0))
    top = y0 - random.randint(0, int(0.4 * y0))
    right = x1 + random.randint(0, int(0.4 * (width - x1)))
    bottom = y1 + random.randint(0, int(0.4 * (height - y1)))
    return [left, top, right, bottom]


def bezier_points(box: Box, outer: Box) -> list[tuple[float, float]]:
    """Points along four curves around `box`, each moved by up to 5 pixels along each axis."""
    x0, y0, x1, y1 = box
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    top = np.asfortranarray([[x0, middle_x, x1], [y0, outer[1], y0]])
    right = np.asfortranarray([[x1, outer[2], x1], [y0, middle_y, y1]])
    bottom = np.asfortranarray([[x1, middle_x, x0], [y1, outer[3], y1]])
    left = np.asfortranarray([[x0, outer[0], x0], [y1, middle_y, y0]])
    points = []
    for nodes in (top, right, bottom, left):
        curve = bezier.Curve(nodes, degree=2)
        seen_x, seen_y = [], []
        for i in range(1, 19):
            # Evaluated anew at each use, as in the original: most of the time of such a mask.
            if (
                curve.evaluate(i * 0.05)[0][0] not in seen_x
                and curve.evaluate(i * 0.05)[1][0] not in seen_y
            ):
                points.append(
                    (
                        curve.evaluate(i * 0.05)[0][0] + random.randint(-5, 5),
                        curve.evaluate(i * 0.05)[1][0] + random.randint(-5, 5),
                    )
                )
                seen_x.append(curve.evaluate(i * 0.05)[0][0])
                seen_y.append(curve.evaluate(i * 0.05)[1][0])
    return points


def keep_mask(
    box: Box, outer: Box, width: int, height: int, arbitrary_mask_percent: float
) -> torch.Tensor:
    """The mask at the size of the photo, (1, H, W) float32: 1 = keep, 0 = repaint."""
    if random.uniform(0, 1) < arbitrary_mask_percent:
        canvas = Image.new("RGB", (width, height), (255, 255, 255))
        ImageDraw.Draw(canvas).polygon(bezier_points(box, outer), fill=(0, 0, 0))
        return T.ToTensor()(canvas)[0].unsqueeze(0)
    hole = np.zeros((height, width))
    hole[outer[1] : outer[3], outer[0] : outer[2]] = 1
    return 1 - T.ToTensor()(Image.fromarray(hole))


def square_window(outer: Box, width: int, height: int) -> Box | None:
    """The square crop, or `None` to take the whole photo."""
    x0, y0, x1, y1 = outer
    side = min(width, height)
    if width > height:
        first, last = max(0, x1 - side), min(x0 + side, width) - side
    elif width < height:
        first, last = max(0, y1 - side), min(y0 + side, height) - side
    else:
        return None
    if last <= first:
        return None
    place = random.randint(first, last)
    left, top = (place, 0) if width > height else (0, place)
    free_space = min(y0 - top, x0 - left, left + side - x1, top + side - y1)
    inset = random.randint(0, int(0.6 * free_space))
    return [left + inset, top + inset, left + side - inset, top + side - inset]


class OfficialDataset(Dataset[dict[str, torch.Tensor]]):
    """Samples of the folder tree that the official repository prepares.

    Args:
        root: Folder with `images/train_0/ID.jpg` and `bbox/train_0/ID.txt`, 0 to f; a line of a
            text file is `x0 y0 x1 y1` in pixels.
        image_size: Side `R` of the images.
        arbitrary_mask_percent: Probability of a Bezier-shaped mask.
    """

    def __init__(
        self, root: Path, *, image_size: int = 512, arbitrary_mask_percent: float = 0.5
    ) -> None:
        self.root = root
        self.image_size = image_size
        self.arbitrary_mask_percent = arbitrary_mask_percent
        self.random_trans = exemplar_transform()
        self.bbox_paths = sorted(
            os.path.join(root, "bbox", folder, name)
            for folder in FOLDERS
            for name in os.listdir(os.path.join(root, "bbox", folder))
        )

    def __len__(self) -> int:
        """Number of photos with boxes."""
        return len(self.bbox_paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Draw a sample.

        Returns:
            `GT` (3, R, R) in [-1, 1]; `inpaint_mask` (1, R, R), 1 = keep; `inpaint_image`, their
            product; `ref_imgs` (3, 224, 224), normalised for CLIP. All float32.
        """
        bbox_path = self.bbox_paths[index]
        stem = os.path.splitext(os.path.basename(bbox_path))[0]
        folder = bbox_path.split("/")[-2]
        photo_path = os.path.join(self.root, "images", folder, stem + ".jpg")
        with open(bbox_path) as lines:
            boxes = [[int(float(edge)) for edge in line.split(" ")[:4]] for line in lines]
        box = random.choice(boxes)
        photo = Image.open(photo_path).convert("RGB")
        width, height = photo.size

        x0, y0, x1, y1 = padded(box, width, height)
        again = cv2.cvtColor(cv2.imread(photo_path), cv2.COLOR_BGR2RGB)
        exemplar = self.random_trans(image=again[y0:y1, x0:x1, :])["image"]
        exemplar = T.ToTensor()(Image.fromarray(exemplar))
        exemplar = T.Normalize(CLIP_MEAN, CLIP_STD)(exemplar)

        image = T.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(T.ToTensor()(photo))
        outer = extended(box, width, height)
        mask = keep_mask(box, outer, width, height, self.arbitrary_mask_percent)
        window = square_window(outer, width, height)
        if window is not None:
            x0, y0, x1, y1 = window
            image, mask = image[:, y0:y1, x0:x1], mask[:, y0:y1, x0:x1]
        resize = T.Resize([self.image_size, self.image_size], antialias=False)
        image, mask = resize(image), resize(mask)
        return {
            "GT": image,
            "inpaint_image": image * mask,
            "inpaint_mask": mask,
            "ref_imgs": exemplar,
        }
