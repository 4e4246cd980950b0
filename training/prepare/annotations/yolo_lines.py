"""What the numbers of a line of YOLO say: a box, an outline, keypoints, a confidence, a track.

| after the class | what it is |
|---|---|
| 4 numbers | `cx cy width height` |
| 5 | the same and a confidence, or the number of a track |
| 6 | the same with both; or an outline of three points |
| 6, 8, 10, ... | the outline `x1 y1 x2 y2 x3 y3 ...`, of an oriented box too; or a box and keypoints `x y` |
| 7, 10, 13, ... | a box and keypoints `x y visibility`; odd counts also an outline and a confidence |

All are shares of the photo's size (https://docs.ultralytics.com/datasets). Where the count alone does
not tell, `Layout` does: `kpt_shape` of data.yaml, or what most lines of the collection can only be.
A line that stays ambiguous is refused: its box would be wrong, and nobody would see it.
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Corners = tuple[float, float, float, float]

NOT_A_BOX = "not 'class cx cy width height' or 'class x1 y1 x2 y2 x3 y3 ...'"
_AMBIGUOUS = (
    "an outline or keypoints; say kpt_shape in data.yaml, or for outlines add one without it"
)
_TRACK = "ends in a point of an outline or in confidence and track; drop the last two if these"
_ANGLE = "a box and a number that is no confidence; write a turned box as its four corners"
_KEYPOINTS = "not the number of values that kpt_shape in data.yaml says"
_ENOUGH = 0.25  # of the lines: more are not as they are by mistake
_MANY = 32  # lines: so many outlines never happen to look like keypoints
_BEYOND = 0.02  # of the photo, by which a box may reach over its edge
_AROUND = 0.25  # of the box, by which keypoints may lie outside
_MOSTLY = 0.75  # of the keypoints lie in the box
_SAME = 1e-3  # of the photo


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the lines of a collection are to be read.

    Attributes:
        keypoints: How many there are, and values of each (2 or 3), where that is known.
        outlines: More than five numbers are an outline.
        tracks: Whether lines of an even count end in a confidence and a track; `None` if a last
            number of 0 or 1 could be either.
        angles: A fifth number is something else than a confidence or a track.
    """

    keypoints: tuple[int, int] | None = None
    outlines: bool = False
    tracks: bool | None = None
    angles: bool = False

    @classmethod
    def of(cls, lines: Iterable[Sequence[float]], *, says_outlines: bool = False) -> Layout:
        """What lines can only be.

        Keypoints are as many in every line and lie in their box; if a quarter of the lines are not
        like that, they are outlines.

        Args:
            lines: The numbers after the class.
            says_outlines: A data.yaml without kpt_shape says so, which settles it unless all of
                many lines look like keypoints.
        """
        lines = list(lines)
        angles = any(len(line) == 5 and not _follows_box(line[4]) for line in lines)
        long = [line for line in lines if len(line) >= 6 and not _has_visibility(line)]
        even = [line for line in long if len(line) % 2 == 0]
        numbered = sum(_is_number_of_track(line[-1]) for line in even)
        shares = sum(line[-1] not in (0, 1) or _is_closed(line) for line in even) - numbered
        tracks = bool(numbered > shares) if numbered or shares else None
        long = [line for line in long if len(line) > 6 or tracks is False]
        usual = Counter(map(len, long)).most_common(1)
        others = sum(len(line) != usual[0][0] or not _may_be_keypoints(line) for line in long)
        outlines = bool(long) and others >= _ENOUGH * len(long)
        outlines |= says_outlines and len(long) < _MANY
        return cls(outlines=outlines, tracks=tracks, angles=angles)

    def corners(self, numbers: Sequence[float]) -> Corners:
        """Left, top, right and bottom of a line's box, by the numbers after the class.

        Raises:
            ValueError: They are no box, or could be different ones.
        """
        count = len(numbers)
        if count < 4:
            raise ValueError(NOT_A_BOX)
        if self.keypoints is not None:
            # Those without keypoints and those of a detector have fewer and more.
            expected = 4 + self.keypoints[0] * self.keypoints[1]
            if count > 6 and not expected <= count <= expected + 2:
                raise ValueError(_KEYPOINTS)
            return _around_centre(numbers)
        if count == 5 and (self.angles or not _follows_box(numbers[4])):
            raise ValueError(_ANGLE)
        if count <= 5 or _has_visibility(numbers):
            return _around_centre(numbers)
        if count % 2:
            numbers = numbers[:-1]  # a confidence or a track, if it is an outline
        elif _is_number_of_track(numbers[-1]) or (self.tracks and numbers[-1] in (0, 1)):
            if count == 6:
                return _around_centre(numbers)
            numbers = numbers[:-2]
        elif self.tracks or (self.tracks is None and numbers[-1] in (0, 1)):
            raise ValueError(_TRACK)
        if not self.outlines:
            raise ValueError(_AMBIGUOUS)
        xs, ys = numbers[::2], numbers[1::2]
        return min(xs), min(ys), max(xs), max(ys)


def _around_centre(numbers: Sequence[float]) -> Corners:
    cx, cy, width, height = numbers[:4]
    return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


def _is_number_of_track(value: float) -> bool:
    """Whether it is that and cannot be a share."""
    return value > 1 and float(value).is_integer()


def _follows_box(value: float) -> bool:
    """Whether it may be a confidence or the number of a track."""
    return 0 <= value <= 1 or _is_number_of_track(value)


def _has_visibility(numbers: Sequence[float]) -> bool:
    """Whether every third number behind the box is 0, 1 or 2, and one of them 2, which no share is.

    A confidence may follow.
    """
    flags = numbers[6 : len(numbers) - (len(numbers) - 4) % 3 : 3]
    return 2 in flags and all(flag in (0, 1, 2) for flag in flags)


def _may_be_keypoints(numbers: Sequence[float]) -> bool:
    """Whether it may be a box and points in it rather than the outline of anything."""
    cx, cy, width, height = numbers[:4]
    if min(width, height) <= 0 or _is_closed(numbers):
        return False
    if max(abs(cx - 0.5) + width / 2, abs(cy - 0.5) + height / 2) > 0.5 + _BEYOND:
        return False
    reach = (0.5 + _AROUND) * width, (0.5 + _AROUND) * height
    for values in (2, 3):  # of a keypoint; others may follow the last
        points = list(zip(numbers[4::values], numbers[5::values], strict=False))
        inside = sum(abs(x - cx) <= reach[0] and abs(y - cy) <= reach[1] for x, y in points)
        unseen = points.count((0, 0))
        if inside + unseen >= _MOSTLY * len(points):
            return True
    return False


def _is_closed(numbers: Sequence[float]) -> bool:
    """Whether it ends where it begins, or is a parallelogram as an oriented box is."""
    if len(numbers) == 8:
        points = zip(numbers[::2], numbers[1::2], strict=True)
        if all(abs(a - b + c - d) < _SAME for a, b, c, d in zip(*points, strict=True)):
            return True
    return numbers[:2] == numbers[-2:]
