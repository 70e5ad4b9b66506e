"""One job: train an arm, predict the test cases, evaluate them, write down what it cost.

python -m nnunet_dualcl.benchmark.job FOLDER ARM LABELED DRAW [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_dualcl import runs
from nnunet_dualcl.atomic import alone, write_table, write_text
from nnunet_dualcl.benchmark import own_data
from nnunet_dualcl.benchmark.arms import Arm, Procedure
from nnunet_dualcl.benchmark.protocol import Job, Protocol
from nnunet_dualcl.benchmark.results import (
    ALL_LABELED,
    CASES_FILE,
    CURVES_FILE,
    JOB_FILE,
    JOBS_FOLDER,
    PREDICTIONS_FOLDER,
    PREPARED_FILE,
    PROTOCOL_FILE,
    TRAINED_BY,
)
from nnunet_dualcl.data.cases import list_case_images, read_split
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.evaluation.metrics import evaluate_folder
from nnunet_dualcl.export import export_stock_model
from nnunet_dualcl.find_trainer import find_trainer, reads_config
from nnunet_dualcl.layout import IMAGES_UNLABELED, STOCK_TRAINER
from nnunet_dualcl.provenance import source_commit
from nnunet_dualcl.training.environment import nnunet_folders, variables

_LOCK_FILE = "running.lock"
_NOTES_FILE = "trainings.json"
_OF_PROCESSES = ("commit", "hardware", "started", "peak_memory_mib")
_SECOND_SEED = 1000
"""Added to the seed of an ensemble's second member."""


@dataclass(frozen=True)
class Place:
    """Where a job finds and puts things."""

    protocol: Protocol
    job: Job
    folder: Path
    device: str

    @property
    def arm(self) -> Arm:
        """What the job trains."""
        return self.protocol.arm(self.job.arm)

    @property
    def scored(self) -> dict[str, list[Path]]:
        """Images of the cases to predict and score, by case."""
        images = list_case_images(self.raw / self.protocol.scored_folders[0], self.dataset_json["file_ending"])
        return {case: images[case] for case in self.split[self.protocol.scored_role]}

    @property
    def own(self) -> Path:
        """Folder of the job."""
        return self.folder / JOBS_FOLDER / self.job.name

    @property
    def raw(self) -> Path:
        """Raw dataset."""
        return self.folder / "nnUNet_raw" / self.protocol.dataset

    @property
    def preprocessed(self) -> Path:
        """Preprocessed dataset."""
        return self.folder / "nnUNet_preprocessed" / self.protocol.dataset

    @property
    def source(self) -> own_data.Source:
        """What data of the job's own are made of."""
        return own_data.Source(self.preprocessed, self.protocol.plans, self.protocol.configuration)

    @property
    def own_preprocessed(self) -> Path:
        """Place for data of the job's own."""
        return self.own / "nnUNet_preprocessed"

    @property
    def split(self) -> dict[str, list[str]]:
        """The job's cases by role: ``train``, ``val``, ``unlabeled`` and ``test``."""
        prepared = json.loads((self.folder / PREPARED_FILE).read_text(encoding="utf-8"))
        split = read_split(self.preprocessed, self.protocol.fold(self.job)) or {}
        return {"unlabeled": [], **split, "test": prepared["test"]}

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Content of the raw dataset's ``dataset.json``."""
        content: dict[str, Any] = json.loads((self.raw / "dataset.json").read_text(encoding="utf-8"))
        return content


def run(folder: Path, job: Job, device: str) -> None:
    """Run one job of a prepared benchmark in this process, unless it is finished.

    On the CPU ``nnUNet_n_proc_DA`` is 0 where it is not set: batches made in the training process come in the same
    order each time, and the same job gives the same weights up to rounding by nnU-Net's blur, which picks its algorithm
    by the clock. A GPU would wait for them.

    Raises:
        DualCLError: no such arm, or another process is at the job.
    """
    place = Place(Protocol.from_yaml(folder / PROTOCOL_FILE), job, folder, device)
    place.protocol.arm(job.arm)  # an unknown one is refused before its folder is made
    workers = {"nnUNet_n_proc_DA": "0"} if device == "cpu" and "nnUNet_n_proc_DA" not in os.environ else {}
    refusal = f"Another process is at the job {place.own}. Wait for it, or end it."
    with alone(place.own / _LOCK_FILE, refusal), variables(workers):
        if not (place.own / JOB_FILE).is_file():
            with nnunet_folders(folder, results=place.own / "model"):
                run_job(place)


def run_job(place: Place) -> None:
    """Train, predict, evaluate; ``job.json`` comes last. Repeat the call to go on after a stop."""
    models, folds, checkpoints = _PROCEDURES[place.arm.procedure](place)
    scored = place.scored
    runs.predict_cases(models, scored, place.own / PREDICTIONS_FOLDER, folds=folds, device=place.device)
    labels = dict(place.dataset_json["labels"])
    ignored = labels.pop("ignore", None)
    labels = {name: value for name, value in labels.items() if value != 0}
    rows = evaluate_folder(
        place.raw / place.protocol.scored_folders[1],
        place.own / PREDICTIONS_FOLDER,
        list(scored),
        labels,
        tolerance_mm=place.protocol.tolerance_mm,
        file_ending=place.dataset_json["file_ending"],
        ignored=ignored,
    )
    write_table(place.own / CASES_FILE, rows)
    logs = [torch.load(path, map_location="cpu", weights_only=False)["logging"] for path in checkpoints]
    keys = {"train_losses": "train_loss", "val_losses": "val_loss", "ema_fg_dice": "ema_fg_dice"}
    curves = [
        {"epoch": epoch, **{name: float(logs[-1][key][epoch]) for key, name in keys.items()}}
        for epoch in range(len(logs[-1]["train_losses"]))
    ]
    write_table(place.own / CURVES_FILE, curves)
    seconds = sum(
        end - start
        for log in logs
        for start, end in zip(log["epoch_start_timestamps"], log["epoch_end_timestamps"], strict=True)
    )
    cost: dict[str, Any] = {
        "wall_seconds": round(seconds, 1),
        "samples_per_second": round(len(logs) * place.protocol.steps * _batch_size(place) / seconds, 3),
    }
    if place.arm.procedure == "export":  # what its training cost, which was in another process perhaps
        source = json.loads((_exported(place).own / JOB_FILE).read_text(encoding="utf-8"))
        begun = {key: source[key] for key in _OF_PROCESSES}
        cost = {**{key: source[key] for key in cost}, TRAINED_BY: source["name"]}
    else:
        begun = _of_processes(place)
    write_text(place.own / JOB_FILE, json.dumps(_record(place, begun, labels, cost), indent=2) + "\n")


Trained = tuple[list[Path], tuple[int, ...], list[Path]]
"""Model folders and folds to average at prediction, final checkpoints."""


def _train(
    place: Place,
    *,
    at: str = "model",
    seed: int = 0,
    fold: int | None = None,
    raw: Path | None = None,
    preprocessed: Path | None = None,
) -> Trained:
    """One training of the job's arm in ``at``, from the job's seed plus ``seed``, on data of its own where given."""
    protocol = place.protocol
    config = protocol.training_config(place.arm, draw=place.job.draw + seed)
    fold = protocol.fold(place.job) if fold is None else fold
    folders = nnunet_folders(place.folder, results=place.own / at, raw=raw, preprocessed=preprocessed)
    with folders, _noted(place, at):
        model = runs.train(
            protocol.dataset,
            protocol.plans,
            _trainer(place),
            config,
            place.own / f"{at}_config.yaml",
            fold=fold,
            configuration=protocol.configuration,
            device=place.device,
        )
    return [model], (fold,), [model / f"fold_{fold}" / "checkpoint_final.pth"]


@contextmanager
def _noted(place: Place, at: str) -> Iterator[None]:
    """Keep what each process that worked at a training was and took; one that finds it finished is none of them."""
    notes = place.own / _NOTES_FILE
    before: list[dict[str, Any]] = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else []
    if any(note["training"] == at and note["finished"] for note in before):
        yield
        return
    if before and before[-1]["training"] == at and any((place.own / at).glob("*/*/fold_*/checkpoint_final.pth")):
        # the process that finished it was ended before it could say so, and what memory it took is lost
        write_text(notes, json.dumps([*before[:-1], {**before[-1], "finished": True}], indent=2) + "\n")
        yield
        return
    note: dict[str, Any] = {
        "training": at,
        "finished": False,
        "commit": source_commit(),  # now: the source may move on while this process runs what it has imported
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": _hardware(place.device),
    }
    write_text(notes, json.dumps([*before, note], indent=2) + "\n")
    yield
    note |= {"finished": True, "peak_memory_mib": round(_peak_memory(place.device), 1)}
    write_text(notes, json.dumps([*before, note], indent=2) + "\n")


def _of_processes(place: Place) -> dict[str, Any]:
    """Commits and hardware of all processes that trained, when the first began, the most memory of those that said so
    at their end, NaN if none did."""
    notes: list[dict[str, Any]] = json.loads((place.own / _NOTES_FILE).read_text(encoding="utf-8"))
    memory = [note["peak_memory_mib"] for note in notes if "peak_memory_mib" in note]
    return {
        "commit": ", ".join(dict.fromkeys(note["commit"] for note in notes)),
        "hardware": "; ".join(dict.fromkeys(note["hardware"] for note in notes)),
        "started": notes[0]["started"],
        "peak_memory_mib": max(memory, default=math.nan),
    }


def _twice_the_batch(place: Place) -> Trained:
    """Train with as many patches a step as a training that adds an unlabeled half."""
    own_data.with_twice_the_batch(place.source, place.own_preprocessed, place.split)
    return _train(place, fold=0, preprocessed=place.own_preprocessed)


def _ensemble(place: Place) -> Trained:
    """Two trainings side by side as two folds of one model, which nnU-Net's predictor averages."""
    (first,), (fold,), first_checkpoint = _train(place)
    _, _, second_checkpoint = _train(place, at="second_model", seed=_SECOND_SEED)
    other = fold + 1
    (first / f"fold_{other}").mkdir(exist_ok=True)
    shutil.copyfile(second_checkpoint[0], first / f"fold_{other}" / "checkpoint_final.pth")
    return [first], (fold, other), [*first_checkpoint, *second_checkpoint]


def _self_training(place: Place) -> Trained:
    """Train, label the unlabeled cases, train anew on all of them for as many steps."""
    first, (fold,), first_checkpoint = _train(place, at="first_model")
    split = place.split
    ending = place.dataset_json["file_ending"]
    images = {folder: list_case_images(place.raw / folder, ending) for folder in ("imagesTr", IMAGES_UNLABELED)}
    pool = {case: images["imagesTr"][case] for case in split["unlabeled"]} | images[IMAGES_UNLABELED]
    labels = place.own / "pseudo_labels"
    runs.predict_cases(first, pool, labels, folds=(fold,), device=place.device)
    pseudo = {case: (files, labels / f"{case}{ending}") for case, files in pool.items()}
    own_data.with_pseudo_labels(place.source, place.own_preprocessed, split, pseudo, place.dataset_json)
    models, folds, checkpoint = _train(place, fold=0, preprocessed=place.own_preprocessed)
    return models, folds, [*first_checkpoint, *checkpoint]


def _labeled_only(place: Place) -> Trained:
    """Train with the labeled cases' own images where the unlabeled ones would be."""
    own_data.with_labeled_as_unlabeled(place.source, place.own_preprocessed, place.split)
    return _train(place, fold=0, preprocessed=place.own_preprocessed, raw=place.own / "nnUNet_raw")


def _export(place: Place) -> Trained:
    """What ``dualcl export`` makes of the other arm's job, which is run first unless it is finished."""
    source = _exported(place)
    run(source.folder, source.job, source.device)
    fold = source.protocol.fold(source.job)
    checkpoints = list((source.own / "model").glob(f"*/*/fold_{fold}/checkpoint_final.pth"))
    if not checkpoints:
        raise DualCLError(
            f"{source.own} is finished, but its model is not there (copied without weights?), so nothing can be "
            "exported. Delete that folder to train again, or leave this arm out."
        )
    models = []
    for network in place.arm.networks:
        models.append(place.own / "model" / f"network_{network}")
        if not models[-1].exists():
            export_stock_model(checkpoints[0].parent.parent, models[-1], folds=(fold,), network=network)
    return models, (fold,), checkpoints


def _exported(place: Place) -> Place:
    return replace(place, job=replace(place.job, arm=place.arm.exports))


_PROCEDURES: Mapping[Procedure, Callable[[Place], Trained]] = {
    "train": _train,
    "twice_the_batch": _twice_the_batch,
    "ensemble": _ensemble,
    "self_training": _self_training,
    "labeled_only": _labeled_only,
    "export": _export,
}


def _trainer(place: Place) -> str:
    """Ours read from their configuration whether to mirror; of nnU-Net's, another one is taken."""
    trainer = place.arm.trainer
    mirrors = place.protocol.training_config(place.arm, draw=0).mirroring
    return f"{trainer}NoMirroring" if trainer == STOCK_TRAINER and not mirrors else trainer


def _peak_memory(device: str) -> float:
    """MiB: of the device's allocator, or of this process (with what Python and its libraries take)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # Linux counts KiB, macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _batch_size(place: Place) -> int:
    """Labeled and unlabeled patches a step."""
    protocol, arm = place.protocol, place.arm
    plans = PlansManager(str(place.preprocessed / f"{protocol.plans}.json"))
    planned: int = plans.get_configuration(protocol.configuration).batch_size
    if arm.procedure == "twice_the_batch":
        return 2 * planned
    config = protocol.training_config(arm, draw=place.job.draw)
    if not reads_config(find_trainer(arm.trainer)) or not config.uses_unlabeled or config.split_batch:
        return planned
    return planned + (config.unlabeled_batch_size or planned)


def _hardware(device: str) -> str:
    return (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )


def _record(place: Place, begun: dict[str, Any], labels: dict[str, Any], cost: dict[str, Any]) -> dict[str, Any]:
    """Content of ``job.json``."""
    protocol, job, arm = place.protocol, place.job, place.arm
    config = protocol.training_config(arm, draw=job.draw)
    return {
        "name": job.name,
        "arm": job.arm,
        "title": arm.title,
        "labeled": job.labeled,
        "draw": job.draw,
        "seed": config.seed,
        "steps": protocol.steps,
        "trainer": _trainer(place),
        "config": config.to_mapping(),
        "plans": protocol.plans,
        "dataset": protocol.dataset,
        "split": {**place.split, "unlabeled": _unlabeled(place)},
        "scored": protocol.scored_role,
        "command": shlex.join([Path(sys.executable).name, "-m", "nnunet_dualcl.benchmark.job", *_arguments(place)]),
        "versions": {name: version(name) for name in ("nnunet-dualcl", "nnunetv2", "torch", "numpy", "monai")},
        **begun,
        **cost,
        "tolerance_mm": protocol.tolerance_mm,
        "labels": labels,
        "file_ending": place.dataset_json["file_ending"],
    }


def _unlabeled(place: Place) -> list[str]:
    """Cases without labels that the job could train on: the split's and those of the folder, or the control's own."""
    if place.arm.procedure == "labeled_only":
        own = read_split(place.own_preprocessed / place.protocol.dataset, 0)
        assert own is not None
        return list(own["unlabeled"])
    folder = list_case_images(place.raw / IMAGES_UNLABELED, place.dataset_json["file_ending"])
    return sorted([*place.split["unlabeled"], *folder])


def _arguments(place: Place) -> list[str]:
    job = place.job
    return [place.folder.name, job.arm, str(job.labeled), str(job.draw), "--device", place.device]


def _end_with(parent: int, poll_seconds: float = 1.0) -> None:
    """A job whose starter was killed would go on unseen; its checkpoints are whole at any moment."""
    while os.getppid() == parent:
        time.sleep(poll_seconds)
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job of a prepared benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arm", help="an arm of the protocol")
    parser.add_argument("labeled")
    parser.add_argument("draw", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parent", type=int, help="end when this process, which started the job, has ended")
    arguments = parser.parse_args(argv)
    if arguments.parent is not None:
        threading.Thread(target=_end_with, args=(arguments.parent,), daemon=True).start()
    folder = arguments.folder.resolve()
    labeled: int | str = ALL_LABELED if arguments.labeled == ALL_LABELED else int(arguments.labeled)
    run(folder, Job(arguments.arm, labeled, arguments.draw), arguments.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
