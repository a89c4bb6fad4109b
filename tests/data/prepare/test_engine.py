"""The executors: Slurm's jobs, run by a stand-in for the scheduler, make the same shards as this process does."""

import os
import stat
import sys
from pathlib import Path

import pytest
import shapes_backends

from diffusers_jdm.data.prepare.engine import WholeStage, make_executor
from diffusers_jdm.data.prepare.run import prepare
from diffusers_jdm.data.prepare.settings import read_settings
from diffusers_jdm.data.prepare.shards import read_clips
from diffusers_jdm.data.video import write_video
from diffusers_jdm.shapes.world import sample_clip

# What `sbatch` does with a script, without a queue: its array's tasks one after the other, at once.
SBATCH = """#!/bin/bash
script="${@: -1}"
last=$(grep -oP '(?<=--array=0-)\\d+' "$script")
for task in $(seq 0 "${last:-0}"); do
    SLURM_JOB_ID=7 SLURM_NODELIST=node SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_CPU=2048 SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=0 bash "$script" >> "$SLURM_LOG" 2>&1 || exit 1
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_does_what_this_process_does(tmp_path, monkeypatch):
    """Two stages of it: each task is a process of its own, which has to load everything first."""
    slurm, videos = tmp_path / "slurm", tmp_path / "videos"
    for folder in (slurm, videos):
        folder.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho node\n")):
        (slurm / name).write_text(script)
        (slurm / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", os.pathsep.join([str(slurm), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("SLURM_LOG", str(tmp_path / "slurm.log"))
    for number in range(2):
        write_video(videos / f"{number}.mp4", sample_clip(5, number, "train", 2, 9, 48, 48).video, 8)
    settings, stages = read_settings(changes=shapes_backends.CHANGES), ["clips", "caption"]
    prepare(videos, tmp_path / "here", settings, stages=stages)
    arguments = {"time": "1:00:00", "partition": "gpu", "gpus_per_task": 1}
    prepare(videos, tmp_path / "there", settings, stages=stages, executor="slurm", executor_args=arguments)
    here, there = (list(read_clips(tmp_path / name, 0, stages)) for name in ("here", "there"))
    assert here == there and [len(clip["objects"]) for clip in here] == [2, 2]
    script = (tmp_path / "there/logs/caption/launch_script.slurm").read_text()
    assert "--partition=gpu" in script and "--array=0-0" in script and "--time=1:00:00" in script


def test_wrong_arguments_of_an_executor(tmp_path):
    step = WholeStage(str(tmp_path), "cmi", None, False)
    for kind, arguments in (("slurm", {}), ("ray", {"no_such": 1})):
        with pytest.raises(ValueError, match=f"--executor_args for {kind}: .*(time|no_such)"):
            make_executor(kind, arguments, step, 1, str(tmp_path), 1, None)
