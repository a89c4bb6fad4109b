import numpy as np
import pytest
from scipy import ndimage

from diffusers_jdm.shapes.signals import depth_map, edge_map
from diffusers_jdm.shapes.world import SHAPES, STILL, ShapeObject, sample_clip


def still(shape, x, y, radius):
    return ShapeObject("red", shape, STILL, radius, np.tile(np.array([[x, y]], np.float32), (3, 1)))


def test_depth_is_one_value_an_object_and_lies_where_its_mask_is():
    for index in range(10):
        clip = sample_clip(1, index)
        depth = depth_map(clip.objects, 48, 48)
        assert depth.dtype == np.uint8 and np.array_equal(depth > 0, clip.masks.any(0))
        assert all(len(np.unique(depth[mask])) == 1 for mask in clip.masks)


def test_the_larger_is_the_nearer_by_inverse_size_and_nothing_is_nearer_than_255():
    depth = depth_map([still("circle", 12, 12, 8.0), still("cross", 36, 36, 4.0)], 48, 48)
    assert depth[0, 12, 12] == pytest.approx(2 * depth[0, 36, 36], abs=1) and depth[0, 0, 0] == 0
    assert depth_map([still("square", 24, 24, 20.0)], 48, 48).max() == 255


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_lie_on_the_outline(shape):
    obj = still(shape, 24.0, 24.0, 9.0)
    edges, inside = edge_map([obj], 48, 48)[0], depth_map([obj], 48, 48)[0] > 0
    outline = inside ^ ndimage.binary_erosion(inside)
    away = ~ndimage.binary_dilation(outline, iterations=4)
    assert edges[outline].min() > 60 and edges[away].max() < 20  # not 0: the lines of sharp corners go on a little
    assert edges.max() > 190
    other = still("cross", 40, 36, 6.0)
    assert np.array_equal(edge_map([obj, other], 48, 48)[0], np.maximum(edges, edge_map([other], 48, 48)[0]))
