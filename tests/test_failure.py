"""What a run that failed says, to the program that started it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sagan.failure import NAME, is_broken_connection, out_of_gpu_memory, read_failure, write_failure


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."),
        RuntimeError("process 1: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ],
)
def test_every_way_in_which_a_gpu_is_full_is_told_in_one_line_with_the_ways_out(error: Exception) -> None:
    said = out_of_gpu_memory(error, "cuda:0")
    assert said is not None and said.startswith("out of GPU memory: cuda:0 has ")
    assert "optim.batch_size" in said and "--workers" in said and "\n" not in said
    assert len(said) < 500, "the queue keeps no more"


def test_memory_that_gives_out_while_a_step_is_recorded_is_seen_behind_the_error_of_the_recording() -> None:
    with pytest.raises(RuntimeError) as raised:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    assert out_of_gpu_memory(raised.value, "cuda:0") is not None


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: device-side assert triggered"), MemoryError("none left")])
def test_other_errors_keep_their_own_words(error: Exception) -> None:
    assert out_of_gpu_memory(error, "cuda:0") is None


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_first_error_of_several_processes_counts(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    write_failure(tmp_path, raised(ValueError("no")), "cpu")
    write_failure(tmp_path, raised(RuntimeError("Connection closed by peer")), "cpu")
    failure = read_failure(tmp_path)
    assert failure is not None and failure.reason == "ValueError: no"
    assert "in raised" in failure.traceback and failure.traceback.endswith("ValueError: no\n")


def test_a_failure_that_a_killed_process_did_not_write_to_its_end_is_none(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"reason": "Val')
    assert read_failure(tmp_path) is None


def test_the_end_of_another_process_is_no_error_of_this_one() -> None:
    lost = "[gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:63172: Connection reset by peer"
    assert is_broken_connection(RuntimeError(lost))
    assert is_broken_connection(torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0"))
    assert not is_broken_connection(RuntimeError("CUDA error: device-side assert triggered"))
