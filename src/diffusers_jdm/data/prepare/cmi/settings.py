"""Which form of Eq. 12, and how many negatives."""

from dataclasses import dataclass

from diffusers_jdm.cmi import FORMS
from diffusers_jdm.data.prepare.stage import above, at_least, one_of


@dataclass
class CmiSettings:
    negatives: int = at_least(1, 1024)  # M of Eq. 12
    form: str = one_of(FORMS, "paper")  # "infonce" takes exp(cos / temperature) in place of Eq. 12's (1 + cos) / 2
    temperature: float = above(0, 0.07)  # of "infonce"
