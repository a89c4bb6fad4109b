"""`train_scripts/train_jdm_cogvideox.py` for the small world: the same, but that Muon trains the blocks' matrices.

    python examples/shapes/train_joint.py --pretrained_model_name_or_path ... --train_data_dir ... --output_dir ...

Takes the same flags. `--learning_rate` is AdamW's; Muon's is twice that.
"""

import sys
from pathlib import Path

from muon import MuonAndAdamW

from diffusers_jdm.training.optimizer import BETAS, EPSILON

sys.path.append(str(Path(__file__).parents[2] / "train_scripts"))
import train_jdm_cogvideox as script


class MuonTrainer(script.Trainer):
    def build_optimizer(self, model):
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = {name for name, p in named.items() if "transformer_blocks." in name and p.ndim == 2}
        rest, chosen = ([p for name, p in named.items() if (name in matrices) == kind] for kind in (False, True))
        rate = self.config.learning_rate
        options = {"betas": BETAS, "eps": EPSILON, "weight_decay": self.config.adam_weight_decay}
        return MuonAndAdamW(rest, chosen, lr=rate, muon_lr=2 * rate, **options)


script.Trainer = MuonTrainer

if __name__ == "__main__":
    script.main(script.parse_args())
