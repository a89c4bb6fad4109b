"""What ends a run is one line; what is a mistake in the code keeps its traceback."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from diffusers_jdm.errors import BadSampleError, TrainingError, exit_clearly
from diffusers_jdm.training.metrics import Log


def said(function, *args) -> str:
    with pytest.raises(SystemExit) as exit:
        exit_clearly(function)(*args)
    assert "\n" not in exit.value.code
    return exit.value.code


def test_a_full_disk(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)
    log.path = Path("/dev/full")
    assert said(log.write, 1, {"loss": 0.5}).startswith(
        "error: a file cannot be read or written: [Errno 28] No space left"
    )


def test_a_folder_in_a_file_s_place(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    assert str(tmp_path / "log.jsonl") in said((tmp_path / "log.jsonl").write_text, "")


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise BadSampleError("none of the 8 clips can be read; the first: it is damaged")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_raises_comes_without_its_traceback(workers):
    loader = DataLoader(Unreadable(), num_workers=workers)
    assert said(list, loader) == "error: none of the 8 clips can be read; the first: it is damaged"


def test_a_mistake_keeps_its_traceback(tmp_path):
    def fail(error):
        raise error

    for error in (FileNotFoundError(2, "No such file", "x"), KeyError("x"), OSError("of a library")):
        with pytest.raises(type(error)):
            exit_clearly(fail)(error)
    assert said(fail, TrainingError("no.")) == "error: no."
