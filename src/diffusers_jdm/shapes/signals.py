"""Depth and edges of the small world, exact, for regional signals other than masks (A.3)."""

from collections.abc import Sequence

import numpy as np

from diffusers_jdm.shapes.world import ShapeObject, signed_distance

NEAREST_RADIUS = 0.18  # of the frame's height: the largest that the world draws


def depth_map(objects: Sequence[ShapeObject], height: int, width: int) -> np.ndarray:
    """Nearness: uint8, (F, H, W), 255 where an object is as near as can be, 0 the background.

    All objects are taken to be of one size, so that the largest is the nearest: apparent size is inverse distance.
    """
    signal = np.zeros((len(objects[0].path), height, width), np.uint8)
    for obj in objects:
        nearness = round(255 * min(obj.radius / (NEAREST_RADIUS * height), 1.0))
        signal[distance_map(obj, height, width) <= 0] = nearness
    return signal


def edge_map(objects: Sequence[ShapeObject], height: int, width: int) -> np.ndarray:
    """Soft outlines, as HED draws them: uint8, (F, H, W), 255 on an outline, none of it left two pixels away."""
    signal = np.zeros((len(objects[0].path), height, width))
    for obj in objects:
        signal = np.maximum(signal, 1 - np.abs(distance_map(obj, height, width)) / 2)
    return (255 * signal.clip(0, 1)).round().astype(np.uint8)


def distance_map(obj: ShapeObject, height: int, width: int) -> np.ndarray:
    """Distance in pixels of each pixel's centre to the outline, negative inside: (F, H, W)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return signed_distance(obj.shape, x - obj.path[:, 0, None, None], y - obj.path[:, 1, None, None], obj.radius)
