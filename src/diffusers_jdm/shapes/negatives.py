"""Phrases of the small world for what a clip does not hold, by the word that is wrong."""

from collections.abc import Sequence

from diffusers_jdm.shapes.world import COLOURS, MOTIONS, SHAPES, STILL, ShapeObject


def false_phrases(objects: Sequence[ShapeObject]) -> dict[str, list[str]]:
    """What no object of the clip is, though it is nearly one of them.

    Returns:
        `dict`: `"swapped"`: the colour of one object with the shape of another; `"other_colour"` and `"other_shape"`: one word
            of an object, the other of none in the clip; `"other_motion"`: an object, moving as it does not.
    """
    kinds = {obj.kind for obj in objects}
    colours, shapes = (dict.fromkeys(words) for words in zip(*(obj.kind for obj in objects)))
    false = {
        "swapped": [(colour, shape) for colour in colours for shape in shapes],
        "other_colour": [(colour, shape) for colour in COLOURS if colour not in colours for shape in shapes],
        "other_shape": [(colour, shape) for colour in colours for shape in SHAPES if shape not in shapes],
    }
    found = {
        name: [f"a {colour} {shape}" for colour, shape in some if (colour, shape) not in kinds]
        for name, some in false.items()
    }
    motions = (*MOTIONS, STILL)
    found["other_motion"] = [
        f"a {obj.colour} {obj.shape} {motion}" for obj in objects for motion in motions if motion != obj.motion
    ]
    return found
