"""What is looked at before a process group starts."""

from __future__ import annotations

import pytest
import torch

from pretrain.errors import DeviceMissing, UserError
from pretrain.launch.place import RankEnvironment
from pretrain.parallel import process_group


def place(local_rank: int, launcher: str = "deepspeed") -> RankEnvironment:
    return RankEnvironment(4 + local_rank, 8, local_rank, 4, "head", 29500, launcher)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "gpus", "found"),
    [(None, False, "cpu"), (None, True, "cuda"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_accelerator(wanted, gpus, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if wanted:
        monkeypatch.setenv("DS_ACCELERATOR", wanted)
    assert process_group.accelerator() == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda", "DS_ACCELERATOR=cuda, but torch finds no GPU"),
        ("cudda", "DS_ACCELERATOR='cudda' is not supported: set cpu or cuda"),
        ("", "DS_ACCELERATOR='' is not supported"),
        ("xpu", "DS_ACCELERATOR='xpu' is not supported"),
    ],
)
def test_an_accelerator_that_is_not_there_is_one_line(wanted, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DS_ACCELERATOR", wanted)
    with pytest.raises(UserError, match=message):
        process_group.accelerator()


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_its_task_is_shown():
    assert process_group.with_device(place(3), 4).local_rank == 3
    assert process_group.with_device(place(3, "slurm"), 1).local_rank == 0
    with pytest.raises(DeviceMissing, match=r"rank 7 is number 3 on .*, where this process sees 1 GPU") as caught:
        process_group.with_device(place(3), 1)
    assert caught.value.of_this_rank
    with pytest.raises(DeviceMissing, match=r"sees 2 GPU"):
        process_group.with_device(place(2, "slurm"), 2)
