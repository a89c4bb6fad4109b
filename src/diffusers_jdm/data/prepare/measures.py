"""What the filters look at: the size of a mask, and how far it is cut off, in pieces or gone (A.2, A.6)."""

import numpy as np

try:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components
except ImportError as error:
    raise ImportError('measuring masks needs scipy: pip install "diffusers-jdm[prepare]"') from error


def measure(masks: np.ndarray) -> dict[str, float]:
    """The measures of one object's masks, each a share in [0, 1]. masks: bool, (F, H, W).

    Returns:
        area: mean share of the frame that the mask covers, over all F frames.
        border: share of the frames in which the mask touches the frame's border.
        fragmentation: mean share of the mask's area that lies outside its largest 8-connected component.
        presence: share of the F frames in which the object is there, by a pixel at least.
        Border and fragmentation are over the frames in which the object is there, and 0 if there is none.
    """
    if masks.dtype != bool or masks.ndim != 3 or not masks.size:
        raise ValueError(f"masks must be bool of shape (F, H, W), got {masks.dtype} of shape {masks.shape}")
    areas, largest = component_areas(masks)
    touches = masks[:, [0, -1], :].any(axis=(1, 2)) | masks[:, :, [0, -1]].any(axis=(1, 2))  # [F]
    there = areas > 0
    outside = (areas - largest)[there] / areas[there]
    return {
        "area": float(areas.sum() / masks.size),
        "border": float(touches[there].mean()) if there.any() else 0.0,
        "fragmentation": float(outside.mean()) if there.any() else 0.0,
        "presence": float(there.mean()),
    }


def component_areas(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each mask, and of its largest 8-connected component. masks: bool, (F, H, W); returns two of (F,).

    Works on the runs of pixels in the rows, of all frames in one go: a real object has few of them, so that this takes
    less time than labelling its pixels with `scipy.ndimage.label`.
    """
    num_frames, height, width = masks.shape
    stride = width + 1  # an empty pixel ends each row, an empty row each frame: no run goes on into the next one
    padded = np.zeros((num_frames, height + 1, stride), bool)
    padded[:, :height, :width] = masks
    ends = np.flatnonzero(np.diff(padded.ravel(), prepend=False))
    starts, ends = ends[::2], ends[1::2]  # [R], positions in `padded`; a run is starts[r]:ends[r]

    # Run r touches those of the row below that end at its start or later, and start at its end or earlier.
    first = np.searchsorted(ends, starts + stride, side="left")
    last = np.searchsorted(starts, ends + stride, side="right")
    count = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), count)
    below = np.arange(len(above)) + np.repeat(first - (np.cumsum(count) - count), count)
    links = csr_array((np.ones(len(above), np.int8), (above, below)), shape=(len(starts), len(starts)))
    num_components, component = connected_components(links, directed=False)

    size = np.bincount(component, weights=ends - starts, minlength=num_components)
    frame = np.zeros(num_components, np.int64)
    frame[component] = starts // ((height + 1) * stride)
    largest = np.zeros(num_frames)
    np.maximum.at(largest, frame, size)
    return np.bincount(frame, weights=size, minlength=num_frames), largest
