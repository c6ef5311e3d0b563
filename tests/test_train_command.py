"""`python -m sagan.train`: a run is a folder and is resumed to the same bits, and a mistake leaves nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sagan import journal
from sagan.checkpoint import load_checkpoint
from sagan.config import Config, diff, override
from sagan.journal import Journal, Record, current, read
from sagan.presets import PRESETS
from sagan.run_folder import read_run
from sagan.train import _shown, main
from sagan.training import Trainer

STEPS, EVERY = 12, 6
TIMED = {"images_per_sec", "peak_memory_mib"}


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return override(tiny, {"optim.steps": STEPS, "eval.every": EVERY})


@pytest.fixture(scope="module")
def options(config: Config, cache_dir: Path) -> list[str]:
    changed = diff(PRESETS["embedded"], config)
    changes = [f"--set={name}={json.dumps(value)}" for name, (_, value) in changed.items()]
    return ["--preset", "embedded", *changes, "--seed", "3", "--threads", "1", "--cache-dir", str(cache_dir)]


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert main([str(folder), *options]) == 0
    return folder


def logged(folder: Path) -> list[Record]:
    return current(read(folder / journal.NAME)[0])


def assert_same_run(folder: Path, wanted: Path) -> None:
    """To the bit; but for the last bits of linear algebra in scores, which hang on where in memory its arrays lie."""
    for one, other in zip(logged(folder), logged(wanted), strict=True):
        assert (one.step, one.files, one.status) == (other.step, other.files, other.status)
        found, scores = ({k: v for k, v in record.metrics.items() if k not in TIMED} for record in (one, other))
        assert found == pytest.approx(scores, rel=1e-12, nan_ok=True)
        for name in ("loss_g", "loss_d", "logit_real", "logit_fake"):
            assert found.get(name) == scores.get(name), name
    names = [name for record in logged(wanted) for name in record.files]
    for name in names:
        if name not in ("config.yaml", "protocol.json"):  # which hold paths, and the step that a process began at
            assert (folder / name).read_bytes() == (wanted / name).read_bytes(), name


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def test_a_run_is_a_folder_that_records_what_the_trainer_yields(
    undisturbed: Path, config: Config, cache_dir: Path, tmp_path: Path
) -> None:
    events = list(Trainer(config, 3, tmp_path, cache_dir=cache_dir).run())
    records = logged(undisturbed)
    assert [one.step for one in records] == [*range(STEPS + 1)]
    assert [one.metrics.keys() for one in records] == [event.metrics.keys() for event in events]
    assert records[-1].metrics["fid"] == pytest.approx(events[-1].metrics["fid"], rel=1e-12)
    assert [one.status for one in records] == [event.outcome for event in events]
    assert (undisturbed / "generator.safetensors").read_bytes() == (tmp_path / "generator.safetensors").read_bytes()
    step = f"step_{STEPS:07d}"
    assert records[0].files == ("config.yaml", "protocol.json")
    assert records[-1].files == (f"samples/{step}.png", f"attention/g8/{step}.npz", "generator.safetensors")
    assert set(contents(undisturbed)) == {
        *("config.yaml", "protocol.json", "journal.jsonl", "generator.safetensors"),
        *("checkpoint.pt", "checkpoint.previous.pt", "samples", "attention", "attention/g8"),
        *(f"samples/step_{step:07d}.png" for step in (EVERY, STEPS)),
        *(f"attention/g8/step_{step:07d}.npz" for step in (EVERY, STEPS)),
    }
    run = read_run(undisturbed)
    assert run is not None and (run.config, run.seed) == (config, 3)


def test_a_finished_run_says_so_and_stays(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(undisturbed)
    assert main([str(undisturbed)]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"has (finished|collapsed) at step {STEPS}: FD embedded-v2 [\d.]+, relation error", said)
    assert contents(undisturbed) == before


def ended_by(number: signal.Signals, arguments: list[str], folder: Path) -> int | None:
    """The exit code of a process that trains, and has the signal in the middle between two checkpoints."""
    waits, sent = folder.with_name("waits"), folder.with_name("sent")
    process = multiprocessing.get_context("fork").Process(target=_train_and_wait, args=(arguments, waits, sent))
    process.start()
    give_up = time.monotonic() + 60
    while not waits.exists():
        assert time.monotonic() < give_up and process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    sent.touch()
    process.join(60)
    return process.exitcode


def _train_and_wait(arguments: list[str], waits: Path, sent: Path) -> None:
    """Trains; at the step after the next but one to the first evaluation it waits until the signal is sent."""
    append = Journal.append

    def slow(self: Journal, step: int, *rest: object, **named: object) -> Record:
        record = append(self, step, *rest, **named)  # type: ignore[arg-type]
        if step == EVERY + 2:
            waits.touch()
            while not sent.exists():
                time.sleep(0.01)
        return record

    Journal.append = slow  # type: ignore[assignment,method-assign]
    sys.exit(main(arguments))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_a_signal_ends_goes_on_to_the_bits_of_one_that_was_not(
    undisturbed: Path, options: list[str], tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "run"
    assert ended_by(number, [str(folder), *options], folder) == status
    saved, is_killed = load_checkpoint(folder), number == signal.SIGKILL
    assert saved is not None and saved["step"] == (EVERY if is_killed else EVERY + 3)
    with (folder / journal.NAME).open("ab") as file:
        file.write(b'{"time": 17')
    assert main([str(folder)]) == 0
    assert_same_run(folder, undisturbed)
    steps = [record.step for record in read(folder / journal.NAME)[0]]
    logged_again = [*range(EVERY, EVERY + 3)] if is_killed else []  # what was logged after the checkpoint
    assert steps == [*range(EVERY + 3), *logged_again, *range(EVERY + 3, STEPS + 1)]


def test_a_full_disk_is_told_and_nothing_is_lost(
    undisturbed: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append = Journal.append

    def full(self: Journal, step: int, *rest: object, **named: object) -> Record:
        if step == EVERY + 1:
            raise OSError(28, "No space left on device")
        return append(self, step, *rest, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        assert main([str(tmp_path / "run"), *options]) == 74
    told_it = capsys.readouterr().err
    assert told_it.count("\n") == 1 and "no room is left on a disk" in told_it
    assert main([str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", undisturbed)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "another config": (["RUN", "OPTIONS", "--set=optim.lr_g=1"], r"holds another run: optim\.lr_g is 0\.0008 there, 1"),
    "another preset": (["RUN", "--preset", "cifar10"], "holds another run: data.name is embedded there, cifar10 here"),
    "another seed": (["RUN", "--seed", "4"], "holds another run: seed is 3 there, 4 here"),
    "a folder that is not ours": (["foreign"], "which holds 'thesis.tex' and no config.yaml; nothing"),
    "a config that is not ours": (["other"], r"line 1 is not NAME: VALUE; nothing in the folder was changed"),
    "a config of a field that is none": (["field"], r"model\.depth: no such field"),
    "a machine that is none": (["machine"], r"config\.yaml: .* machine\.threads is 'two'"),
    "a file": (["foreign/thesis.tex"], "must be a folder, got the file"),
    "a damaged journal": (["damaged"], r"journal\.jsonl:2: .* is damaged"),
    "no preset": (["new"], "--preset: must be given for a new run"),
    "a preset that is none": (["new", "--preset", "embeded"], "--preset: .* did you mean 'embedded'?"),
    "a field that is none": (["new", "OPTIONS", "--set", "optim.step=3"], "did you mean 'optim.steps'"),
    "a rate that is not read": (["new", "OPTIONS", "--set=optim.lr_equal=1"], "lr_equal: has an effect only with"),
    "no value": (["new", "OPTIONS", "--set", "optim.steps"], "--set: must be KEY=VALUE, got 'optim.steps'"),
    "attention that does not fit": (["new", "OPTIONS", "--set=model.attention.at=[64]"], "needs 128 px"),
    "a seed below 0": (["new", "OPTIONS", "--seed", "-1"], "--seed: must be a whole number in 0"),
    "a device that is none": (["new", "OPTIONS", "--device=gpu"], "--device: must be cpu, cuda or cuda:N, got 'gpu'"),
    "no thread": (["new", "OPTIONS", "--threads", "0"], "--threads: must be 1 or more"),
    "a root that is not there": (["new", "OPTIONS", "--data-root", "nowhere"], "--data-root: no such file or folder"),
    "a folder that cannot be made": (["foreign/thesis.tex/run", "OPTIONS"], "thesis.tex.* cannot be written"),
    "images of one's own without a root": (["new", "OPTIONS", "--set", "data.name=folder"], "--data-root: must name"),
    "an extractor that is none": (["new", "OPTIONS", "--set=eval.extractor=vgg"], "eval.extractor: must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_and_changes_nothing(
    mistake: str,
    undisturbed: Path,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("foreign", "other"):
        Path(name).mkdir()
    Path("foreign", "thesis.tex").write_text("Chapter 1")
    Path("other", "config.yaml").write_text("- a list\n")
    shutil.copytree(undisturbed, "field")
    Path("field", "config.yaml").write_text(f"model.depth: 3\n{(undisturbed / 'config.yaml').read_text()}")
    Path("machine").mkdir()
    kept = (undisturbed / "config.yaml").read_text()
    Path("machine", "config.yaml").write_text(kept.replace("machine.threads: 1", "machine.threads: two"))
    shutil.copytree(undisturbed, "damaged")
    lines = Path("damaged", journal.NAME).read_text().splitlines(keepends=True)
    Path("damaged", journal.NAME).write_text("".join([lines[0], "#" + lines[1], *lines[2:]]))
    before = contents(tmp_path)
    words, message = MISTAKES[mistake]
    arguments = [part for word in words for part in {"RUN": [str(undisturbed)], "OPTIONS": options}.get(word, [word])]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert contents(tmp_path) == before


def test_a_mistake_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    program = "import sys; from sagan.train import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    arguments = (str(tmp_path / "new"), "--preset", "embedded", "--set", "optim.steps=0")
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert done.stderr == "sagan.train: optim.steps: must be above 0, got 0\n"


def test_a_folder_in_which_another_process_trains_is_left_to_it(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(undisturbed / "config.yaml", folder)
    with Journal(folder / journal.NAME):
        assert main([str(folder)]) == 2
    assert "another process trains in this folder" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [EVERY, EVERY + 2], ids=["an evaluation's", "another step"])
def test_a_run_that_is_given_more_steps_ends_in_the_bits_of_one_that_had_them_from_the_start(
    steps: int, undisturbed: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shorter = [*options, f"--set=optim.steps={steps}", f"--set=eval.endpoint={-(-steps // EVERY)}"]
    assert main([str(folder), *shorter]) == 0
    assert [one.step for one in logged(folder)] == [*range(steps + 1)]
    assert main([str(folder), *options]) == 0
    assert f"from step {steps} to {STEPS}" in capsys.readouterr().out
    assert_same_run(folder, undisturbed)
    assert main([str(folder)]) == 0
    assert "has " in capsys.readouterr().out
    assert main([str(folder), *shorter]) == 2
    assert f"optim.steps is {STEPS} there, {steps} here" in capsys.readouterr().err


def test_a_run_that_is_killed_while_it_is_given_more_steps_is_still_the_one_or_the_other(
    undisturbed: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_arguments: object) -> None:
        raise Killed

    folder, shorter = tmp_path / "run", [*options, f"--set=optim.steps={EVERY}"]
    assert main([str(folder), *shorter]) == 0
    first = contents(folder)
    for place in ("sagan.train.Journal.append", "sagan.checkpoint.write_atomically", "sagan.train._train"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(place, die)
            main([str(folder), *options])
        again = tmp_path / place
        shutil.copytree(folder, again)
        assert main([str(again), *(options if place.endswith("_train") else shorter)]) == 0
        if not place.endswith("_train"):
            assert contents(again)["generator.safetensors"] == first["generator.safetensors"]
            assert main([str(again), *options]) == 0
        assert_same_run(again, undisturbed)


@pytest.mark.parametrize("leftover", [".config.yaml.123", "journal.jsonl"])
def test_what_a_process_leaves_that_was_killed_at_its_start_is_no_obstacle(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).touch()
    assert read_run(tmp_path) is None


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_names_the_distance_by_its_extractor(config: Config, is_terminal: bool) -> None:
    said = StringIO()
    record = Record(0.0, EVERY, {"loss_g": 0.5, "fid": 3.25, "relation_error": 0.125, "images_per_sec": 100.0})
    with _shown(config, 0, Console(file=said, force_terminal=is_terminal, width=150)) as show:
        show(record)
    assert "loss G 0.5, FD embedded-v2 3.25, relation error 0.125, images/s 100" in said.getvalue()
    assert (f"{EVERY}/{STEPS}" if is_terminal else f"step {EVERY} of {STEPS}: ") in said.getvalue()


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one_run_that_can_be_stopped(
    undisturbed: Path, options: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [*torchrun, "-m", "sagan.train", str(folder), *options, "--set=optim.steps=60", "--set=eval.every=10"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with start() as stopped:
        give_up = time.monotonic() + 120
        while len(read(folder / journal.NAME)[0]) < 5:
            assert time.monotonic() < give_up and stopped.poll() is None
            time.sleep(0.02)
        stopped.terminate()
        said = stopped.communicate(timeout=60)[0]
    assert said.count("stopped and saved at step") == 1, said
    saved = load_checkpoint(folder)
    assert saved is not None and saved["processes"] == 2 and saved["step"] >= 4
    with start() as resumed:
        said = resumed.communicate(timeout=120)[0]
    assert resumed.returncode == 0, said
    records = read(folder / journal.NAME)[0]
    assert [record.step for record in records] == [*range(61)], "the first process writes, and each step once"
    assert records[-1].status is not None and "generator.safetensors" in records[-1].files
    alone = logged(undisturbed)[1].metrics
    for name in ("loss_g", "loss_d", "logit_real"):
        assert records[1].metrics[name] == pytest.approx(alone[name], rel=1e-4), "to rounding that of one process"
