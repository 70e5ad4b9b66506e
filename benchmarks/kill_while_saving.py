"""Kill a process with SIGKILL while it saves checkpoints, many times, and load what it leaves.

    python benchmarks/kill_while_saving.py [--kills 30] [--features 12 24 48] [--seed 0] [-o FILE]

Each child saves the same checkpoint over and over and is killed after a random time. What counts: the checkpoint in its
place loads into a new trainer and is one that was written whole. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _common import write
from _trainers import build, nnunet_folder

from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

CHECKPOINT = "checkpoint_latest.pth"


def save_for_ever(trainer: Any, path: Path) -> None:
    """Epoch numbers grow, so that a checkpoint says when it was made; ends by the parent's signal only."""
    while True:
        trainer.current_epoch += 1
        trainer.save_checkpoint(str(path))


def kill_once(trainer: Any, folder: Path, delay: float) -> bool:
    """Fork, let the child save for ``delay`` seconds after its first checkpoint, kill it; whether it was writing."""
    path = folder / CHECKPOINT
    child = os.fork()
    if child == 0:
        with contextlib.redirect_stdout(io.StringIO()):
            save_for_ever(trainer, path)
    while not path.is_file():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = list(folder.glob(".*partial*"))
    for partial in left:
        partial.unlink()
    return bool(left)


def loads(folder: Path, arguments: argparse.Namespace) -> str | None:
    """What goes wrong when a new trainer loads the checkpoint; None where nothing does."""
    try:
        trainer = build(DualCLTrainer, arguments)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.load_checkpoint(str(folder / CHECKPOINT))
        finite = all(bool(torch.isfinite(weight).all()) for weight in trainer.network.parameters())
        return None if finite and trainer.current_epoch > 0 else "weights or epoch are not what was saved"
    except Exception as error:  # whatever a broken file raises is the finding
        return repr(error)


def main() -> None:
    """Kill, load, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--features", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    arguments.patch, arguments.classes, arguments.device = [24, 32, 24], 3, "cpu"
    torch.set_num_threads(1)  # a fork takes no thread along
    draw = random.Random(arguments.seed)
    writing, faults = 0, []
    with nnunet_folder(), tempfile.TemporaryDirectory() as place:
        trainer = build(DualCLTrainer, arguments)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.save_checkpoint(str(Path(place) / CHECKPOINT))
        duration = time.perf_counter() - started
        for number in range(arguments.kills):
            folder = Path(place) / str(number)
            folder.mkdir()
            writing += kill_once(trainer, folder, draw.uniform(0, 2 * duration))
            fault = loads(folder, arguments)
            faults += [fault] if fault else []
    result = {"kills": arguments.kills, "while_writing": writing, "loadable": arguments.kills - len(faults)}
    setting = {key: value for key, value in vars(arguments).items() if key != "o"}
    write(arguments.o, {**result, "faults": faults, "seconds_a_save": duration, "setting": setting})


if __name__ == "__main__":
    main()
