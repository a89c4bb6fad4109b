"""Several trainings one after the other in the processes that `accelerate launch` starts, for starting takes longest.

    accelerate launch --config_file ... tests/many_runs.py RUNS.json

RUNS.json: a list of {"script", "flags"}, and where wanted "nan_sample", the id of a sample whose loss is to be NaN. Each
process leaves in each run's `--output_dir` a file `process-N.json`: `error`, with which the run ended, `engine`, as
accelerate calls it, `shards`, the names of the modules that FSDP shards, and `weights`, a hash of what it has at the end.

With CPU_AS_GPU=1, accelerate takes the CPU for a GPU: by itself it has FSDP and DeepSpeed on GPUs only.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from small_paths import load_script

from diffusers_jdm.training import loop


def main(runs: list[dict]) -> None:
    if os.environ.get("CPU_AS_GPU"):
        PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState.destroy_process_group = lambda *args: None  # the next run needs it, too
    for run in runs:
        report = train(**run)
        folder = Path(run["flags"][run["flags"].index("--output_dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"process-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(report))


def train(script: str, flags: list[str], nan_sample: str | None = None) -> dict:
    module, report = load_script(script), {"error": None}
    save_result, compute_losses = module.save_result, loop.compute_losses

    def save_and_look(trainer):
        save_result(trainer)
        model = trainer.accelerator.unwrap_model(trainer.model)
        report["engine"] = str(trainer.accelerator.distributed_type.value)
        report["shards"] = [name for name, part in model.named_modules() if hasattr(part, "unshard")]
        if not report["shards"]:
            weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
            report["weights"] = hashlib.sha256(weights).hexdigest()

    def with_nan(base, model, batch, *args):
        losses = compute_losses(base, model, batch, *args)
        factor = torch.tensor([torch.nan if name == nan_sample else 1.0 for name in batch["ids"]])
        return losses | {"per_sample": losses["per_sample"] * factor, "loss": losses["loss"] * factor.mean()}

    module.save_result = save_and_look
    loop.compute_losses = with_nan if nan_sample else compute_losses
    try:
        module.main(module.parse_args(flags))
    except SystemExit as error:
        report["error"] = str(error)
    finally:
        loop.compute_losses = compute_losses
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return report


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
