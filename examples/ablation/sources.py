"""What L_fine is made of, taken apart: captions that leave objects out without masks, and masks without such captions."""

import numpy as np

from diffusers_jdm.objective import fine_probability
from diffusers_jdm.samples.latents import LatentSource


class PartialCaptions(LatentSource):
    """For direct fine-tuning: in place of the full caption that of a random subset, as often as JDM with w = 0.5 draws L_fine."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rng = np.random.default_rng(0)

    def read(self, index, region, drop_text=False):
        drawn = self.draw_region(index, self.rng)
        is_partial = self.rng.random() < fine_probability(0.5, drawn.mean_cmi).item()
        return super().read(index, drawn if is_partial else None, drop_text) | {"mask": None}


class WholeCaptions(LatentSource):
    """For JDM: the subset is always that of all objects."""

    def draw_region(self, index, rng):
        return max(self.regions(index), key=lambda region: len(region.caption))
