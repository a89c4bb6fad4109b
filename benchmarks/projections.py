"""Where a joint forward can take more time than its base's: the layers that grow, each on its own inputs of a forward."""

import statistics
import time

import torch
from torch import nn
from tqdm import tqdm

from diffusers_jdm.evaluation.overhead.denoisers import released_pair, with_random_weights
from diffusers_jdm.evaluation.overhead.measure import KINDS, forward_of


def grown_layers(base: nn.Module, joint: nn.Module) -> list[str]:
    """Names of the layers whose own weights have another shape in the joint model."""
    shapes = {name: parameter.shape for name, parameter in base.named_parameters()}
    grown = [name for name, parameter in joint.named_parameters() if parameter.shape != shapes.get(name)]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in grown))


def inputs_of(model: nn.Module, names: list[str], forward) -> dict[str, torch.Tensor]:
    """What each of these layers is given in one forward."""
    inputs = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
        for name in names
    ]
    forward()
    for hook in hooks:
        hook.remove()
    return inputs


@torch.no_grad()
def measure_projections(name: str, size, dtype: str, turns: int, repeats: int = 20) -> dict:
    """On the CPU, by the process's own clock, base and joint in turns.

    Returns:
        `dict`: `layers`: for each its `base_seconds`, `joint_seconds`; `forward_seconds` of the base; and `share`: what the joint
        layers take more than the base's, all together, over the base's forward, with `share_spread`, its lowest and highest turn.
    """
    device = torch.device("cpu")
    pair = released_pair(name, size, on_gpu=False)
    bases = with_random_weights(pair, device, getattr(torch, dtype))
    models = {kind: getattr(bases[kind].pipe, pair.base.component) for kind in KINDS}
    forwards = {kind: forward_of(pair, bases[kind], models[kind], device) for kind in KINDS}
    layers = grown_layers(models["base"], models["joint"])
    inputs = {kind: inputs_of(models[kind], layers, forwards[kind]) for kind in KINDS}
    forward_seconds = statistics.median(seconds_of(forwards["base"], 1) for _ in range(3))
    seconds = {(layer, kind): [] for layer in layers for kind in KINDS}
    for turn in tqdm(range(turns), desc=f"{name}'s projections"):
        for layer in layers:
            for kind in KINDS if turn % 2 else reversed(KINDS):
                module, given = models[kind].get_submodule(layer), inputs[kind][layer]
                seconds[layer, kind].append(seconds_of(lambda module=module, given=given: module(given), repeats))
    more = [sum(seconds[layer, "joint"][k] - seconds[layer, "base"][k] for layer in layers) for k in range(turns)]
    return {
        "layers": {
            layer: {f"{kind}_seconds": statistics.median(seconds[layer, kind]) for kind in KINDS} for layer in layers
        },
        "forward_seconds": forward_seconds,
        "share": statistics.median(more) / forward_seconds,
        "share_spread": [min(more) / forward_seconds, max(more) / forward_seconds],
    }


def seconds_of(function, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - start) / repeats
