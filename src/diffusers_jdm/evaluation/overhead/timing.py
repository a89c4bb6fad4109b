"""Time and memory of functions that are to be compared: they take turns, so that what else a machine does meets them all."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

LEAST = 0.5  # seconds of a measurement: single calls of a small model are at the mercy of a busy machine

Functions = Mapping[str, Callable[[], Any]]
Clocks = dict[str, Callable[[], float]]
Times = dict[str, dict[str, list[float]]]


def take_turns(
    functions: Functions,
    turns: int,
    device: torch.device,
    warm_up: int = 1,
    clocks: Clocks | None = None,
    name: str = "turns",
) -> Times:
    """Seconds of a call, function → clock → turn. In a turn each is measured once, in the order given or in the reverse of it.

    A measurement is the mean over as many calls as last `LEAST` seconds, the same number for all functions.

    warm_up: calls of each function before, which are not measured.
    clocks: the first one is that of the wall, which says what `LEAST` seconds are; None: `clocks_of` the device.
    """
    clocks = clocks or clocks_of(device)

    def measure(function: Callable[[], Any], calls: int) -> list[float]:
        _synchronize(device)
        starts = [clock() for clock in clocks.values()]
        for _ in range(calls):
            function()
        _synchronize(device)
        return [(clock() - start) / calls for clock, start in zip(clocks.values(), starts)]

    first = [[measure(function, 1)[0] for _ in range(warm_up)] for function in functions.values()]
    calls = max(1, math.ceil(LEAST / max(min(each[-1] for each in first), 1e-3)))
    times: Times = {key: {clock: [] for clock in clocks} for key in functions}
    for turn in tqdm(range(turns), desc=name):
        for key in functions if turn % 2 == 0 else reversed(functions):
            for clock, seconds in zip(clocks, measure(functions[key], calls)):
                times[key][clock].append(seconds)
    return times


def clocks_of(device: torch.device) -> Clocks:
    """The wall's; and on a CPU this process's own, which stands still while other processes compute."""
    clocks: Clocks = {"wall": time.perf_counter}
    return clocks if device.type == "cuda" else {**clocks, "processor": time.process_time}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # a call returns before the GPU has done its work
        torch.cuda.synchronize(device)


def compare(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """How much longer than the base, from the ratio in each turn.

    Returns:
        `seconds`, the median; `ratio`, the median over the turns; `quartiles` of the turns' ratios, their spread; `interval`,
        the 95 % bootstrap interval of the median ratio (10,000 draws of the turns).
    """
    ratios = np.asarray(seconds) / np.asarray(base)
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    return {
        "seconds": float(np.median(seconds)),
        "ratio": float(np.median(ratios)),
        "quartiles": np.percentile(ratios, [25, 75]).tolist(),
        "interval": np.percentile(np.median(draws, axis=1), [2.5, 97.5]).tolist(),
    }


def compare_all(times: Times) -> dict[str, dict[str, Any]]:
    """Function → clock → `compare` with "base", and the seconds of all `turns`."""
    return {
        name: {clock: compare(turns, times["base"][clock]) | {"turns": turns} for clock, turns in own.items()}
        for name, own in times.items()
    }


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that torch has allocated at once while the function runs, beyond what it had before."""
    if device.type == "cuda":
        _synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        _synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(0, int(np.cumsum(sizes).max())) if sizes else 0


def weight_bytes(*modules: torch.nn.Module) -> int:
    """Of parameters and buffers, each counted at its full size."""
    return sum(tensor.nbytes for module in modules for tensor in [*module.parameters(), *module.buffers()])
