"""What ends a run is one line; what is a mistake in the code keeps its traceback."""

import errno

import pytest
from torch.utils.data import DataLoader, Dataset

from diffusers_jdm.errors import BadSampleError, TrainingError, as_training_error, exit_clearly, one_line, with_cause


def fail(error, cause=None):
    raise error from cause


class Unreadable(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise BadSampleError("none of the 8 clips can be read; the first: it is damaged")


@pytest.mark.parametrize(
    "function, argument, said",
    [
        (fail, TrainingError("no."), "error: no."),
        (
            fail,
            OSError(errno.ENOSPC, "No space left", "log.jsonl"),
            r"error: a file cannot .*: \[Errno 28\] No space left",
        ),
        (fail, IsADirectoryError(errno.EISDIR, "It is a folder", "log.jsonl"), "error: .*'log.jsonl'"),
        (list, DataLoader(Unreadable()), "error: none of the 8 clips can be read; the first: it is damaged$"),
        # of a worker: its traceback is in the message
        (list, DataLoader(Unreadable(), num_workers=1), "error: none of the 8 clips can be read; the first: it is"),
    ],
)
def test_what_is_not_the_codes_fault_is_one_line(function, argument, said):
    with pytest.raises(SystemExit, match=f"^{said}") as exit:
        exit_clearly(function)(argument)
    assert "\n" not in exit.value.code


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "x"), KeyError("x"), OSError("of a library")])
def test_a_mistake_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_clearly(fail)(error)


def test_an_error_and_its_causes_in_one_line():
    assert one_line(ValueError("a\n  b" + 400 * "x")) == "a b" + 297 * "x" and one_line(KeyError()) == "KeyError"
    with pytest.raises(OSError) as caught:
        fail(OSError("not sent"), ConnectionError("cut\noff"))
    assert with_cause(caught.value) == "not sent: cut off"
    with pytest.raises(TrainingError, match=r"^too\nlarge$"):
        as_training_error(fail, ValueError("too\nlarge"))
