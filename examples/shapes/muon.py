"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer: on a small model far fewer steps are needed."""

import precision  # noqa: F401 - where the CPU has no bf16, Muon is to compute in fp32
import torch


class MuonAndAdamW(torch.optim.AdamW):
    """AdamW, whose second group of parameters, matrices, is trained by `torch.optim.Muon` with the group's learning rate."""

    def __init__(self, rest: list, matrices: list, lr: float, muon_lr: float, **options):
        super().__init__([{"params": rest, "lr": lr}, {"params": matrices, "lr": muon_lr}], **options)
        weight_decay = options.get("weight_decay", 0.01)
        self.muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure=None):
        group = self.param_groups[1]
        self.muon.param_groups[0]["lr"] = group["lr"]
        self.muon.step()
        for parameter in group["params"]:
            parameter.grad = None  # which AdamW passes over
        return super().step(closure)

    def state_dict(self):
        return super().state_dict() | {"muon": self.muon.state_dict()}

    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        self.muon.load_state_dict(state_dict.pop("muon"))
        super().load_state_dict(state_dict)
