"""The paper's Table 6: what JDM costs over the base, on an A100."""

from typing import NamedTuple


class Table6(NamedTuple):
    """The paper's column: base, joint, and its own figure of the relative change, which the rounded ones would not give."""

    parameters: tuple[float, float, float]
    seconds: tuple[float, float, float]  # of a forward, batch size 1


TABLE_6 = {
    "cogvideox": Table6((1.6938e9, 1.6940e9, 0.00015), (0.4946, 0.5052, 0.0214)),
    "modelscope": Table6((1.4112e9, 1.4113e9, 0.00002), (0.4226, 0.4263, 0.0088)),
}
"""By the name of the base."""
