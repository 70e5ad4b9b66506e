from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import submitit
import torch
import yaml
from filelock import FileLock

from nnunet_dualcl.benchmark import job as job_module
from nnunet_dualcl.benchmark.job import Place
from nnunet_dualcl.benchmark.own_data import with_pseudo_labels
from nnunet_dualcl.benchmark.protocol import Job, Protocol
from nnunet_dualcl.benchmark.results import finished_seconds, load_results
from nnunet_dualcl.benchmark.run import Engine, _submit, run_benchmark, run_jobs, time_left
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.data.cases import list_case_images
from nnunet_dualcl.dataset_conversion.phantom import write_phantom_dataset
from nnunet_dualcl.errors import DualCLError
from nnunet_dualcl.preprocessing import preprocess_dataset
from nnunet_dualcl.training.environment import nnunet_folders

pytestmark = pytest.mark.slow

PROTOCOL: dict[str, Any] = {
    "title": "Phantoms",
    "dataset_id": 9,
    "dataset_name": "Tiny",
    "labeled": [2],
    "steps": 2,
    "steps_per_epoch": 2,
    "test_cases": 2,
    "validation_cases": 1,
    "arms": {"stock": 1, "stock_all": 1, "stock_twice_the_batch": 1, "stock_ensemble": 1, "self_training": 1}
    | {"dualcl_exported": 1, "dualcl": 1, "dualcl_labeled_only": 1}
    | {"dualcl_two_networks": 1, "dualcl_two_networks_exported": 1},
    "small_plans": {"patch_size": [8, 16, 16], "features": [3, 4, 5], "spacing_mm": [5.0, 3.0, 3.0]},
    "config": {"contrastive_samples": 32, "mirroring": False},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labeled phantoms and three without labels."""
    return write_phantom_dataset(
        tmp_path_factory.mktemp("source"), dataset_id=1, labeled=6, validation=0, unlabeled=3, test=0
    )


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("nnUNet_def_n_proc", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    modules = ("nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "nnunetv2.configuration")
    for module in (*modules, "nnunet_dualcl.benchmark.own_data"):
        monkeypatch.setattr(f"{module}.default_num_processes", 1)
    monkeypatch.setattr("nnunet_dualcl.benchmark.prepare._PROCESSES", 1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**PROTOCOL, **changes}, sort_keys=False), encoding="utf-8")
    return path


def place_of(raw: Path, case: str) -> str:
    return "imagesTr" if (raw / "imagesTr" / f"{case}_0000.nii.gz").is_file() else "imagesUnlabeled"


class Submitted:
    """What submitit gives back, done at the ``looks``-th look."""

    def __init__(self, looks: int = 1) -> None:
        self.looks = looks
        self.cancelled = False

    def done(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    def cancel(self, check: bool) -> None:
        self.cancelled = True


def in_this_process(folder: Path, job: Job, device: str, engine: Engine, slot: int) -> Submitted:
    """Stands for a process of the job's own, whose start takes most of the time."""
    job_module.run(folder, job, device)
    return Submitted()


def test_a_benchmark_from_scans_to_report_and_again(
    source: Path, tmp_path: Path, one_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", in_this_process)
    out = tmp_path / "out"
    protocol = write(tmp_path)
    assert main(["benchmark", str(protocol), "-i", str(source), "-o", str(out), "-device", "cpu"]) == 0
    results = load_results(out)
    assert sorted(results.jobs["arm"]) == sorted(PROTOCOL["arms"])
    records = {path.parent.name: json.loads(path.read_text()) for path in out.glob("jobs/*/job.json")}
    raw = out / "nnUNet_raw" / "Dataset009_Tiny"
    test = {path.name.removesuffix(".nii.gz") for path in (raw / "labelsTs").iterdir()}
    for record in records.values():
        split = record["split"]
        assert set(split["test"]) == test
        assert not test & set(split["train"] + split["val"] + split["unlabeled"])
        assert record["wall_seconds"] > 0
        ours = "DualCLTwoNetTrainer" if "two_networks" in record["arm"] else "DualCLTrainer"
        assert record["trainer"] == (ours if record["arm"].startswith("dualcl") else "nnUNetTrainerNoMirroring")
    few, everything = (set(records[name]["split"]["train"]) for name in ("stock_2_0", "stock_all_all_0"))
    assert (len(few), len(everything)) == (2, 3)
    assert few < everything
    # the exported model is of DualCL's job, which was run before though the protocol names it later
    exported, trained = out / "jobs" / "dualcl_exported_2_0", records["dualcl_2_0"]
    assert records[exported.name] | {key: trained[key] for key in ("name", "arm", "title", "command", "started")} == (
        trained | {"trained_by": "dualcl_2_0"}
    )
    weights = torch.load(exported / "model" / "network_a" / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert weights["trainer_name"] == "nnUNetTrainer"
    assert not any(name.startswith("beside") for name in weights["network_weights"])
    assert finished_seconds(out, exported.name) == 0
    both = out / "jobs" / "dualcl_two_networks_exported_2_0" / "model"
    plans = [json.loads((both / name / "plans.json").read_text())["plans_name"] for name in ("network_a", "network_b")]
    assert plans == ["benchmarkPlans", "benchmarkPlansNetworkB"]
    # the second training of self-training sees labels that its first one gave, and no others
    own = out / "jobs" / "self_training_2_0"
    (again,) = json.loads((own / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())
    pseudo = {path.name.removesuffix(".nii.gz") for path in (own / "pseudo_labels").glob("*.nii.gz")}
    assert set(again["train"]) == few | pseudo
    assert [again["train"].count(case) for case in sorted(few)] == [2, 2]  # of four others: half of what is drawn
    assert len(again["train"]) == 8
    # a stop between its trainings does not preprocess those cases again
    (folder,) = (path for path in own.glob("nnUNet_preprocessed/*/*") if (path / f"{min(pseudo)}.b2nd").is_file())
    files = [path for case in pseudo for path in folder.glob(f"{case}*")]
    assert len(files) == 3 * len(pseudo)
    kept = {path: path.stat().st_mtime_ns for path in files}
    (folder / f"{min(pseudo)}.pkl").unlink()
    place = Place(Protocol.from_yaml(protocol), Job("self_training", 2, 0), out, "cpu")
    images = {case: list_case_images(raw / place_of(raw, case), ".nii.gz")[case] for case in pseudo}
    labeled = {case: (images[case], own / "pseudo_labels" / f"{case}.nii.gz") for case in pseudo}
    with_pseudo_labels(place.source, place.own_preprocessed, place.split, labeled, place.dataset_json)
    redone = {path.name.split(".")[0].removesuffix("_seg") for path in files if path.stat().st_mtime_ns != kept[path]}
    assert redone == {min(pseudo)}
    assert not list(folder.glob(".*"))
    # the control trains on images of the labeled cases alone
    own = out / "jobs" / "dualcl_labeled_only_2_0"
    (again,) = json.loads((own / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())
    assert set(again["train"]) == few
    assert again["unlabeled"] == [f"{case}_again" for case in sorted(few)]
    assert records[own.name]["split"]["unlabeled"] == again["unlabeled"]
    (checkpoint,) = own.glob("model/*/*/fold_0/checkpoint_final.pth")
    assert set(torch.load(checkpoint, weights_only=False)["dualcl"]["seen"]) == few | set(again["unlabeled"])
    (unlabeled,) = own.glob("nnUNet_preprocessed/*/*_unlabeled")
    labeled = unlabeled.with_name(unlabeled.name.removesuffix("_unlabeled"))
    for case in few:
        assert (unlabeled / f"{case}_again.b2nd").read_bytes() == (labeled / f"{case}.b2nd").read_bytes()
    # twice the batch is in the plans of that job alone
    batches = {
        arm: torch.load(checkpoint, weights_only=False)["init_args"]["plans"]["configurations"]["3d_fullres"][
            "batch_size"
        ]
        for arm in ("stock", "stock_twice_the_batch")
        for checkpoint in (out / "jobs" / f"{arm}_2_0").glob("model/*/*/fold_*/checkpoint_final.pth")
    }
    assert batches == {"stock": 2, "stock_twice_the_batch": 4}
    for arm, batch in batches.items():  # two steps; the seconds are rounded to tenths
        record = records[f"{arm}_2_0"]
        assert 2 * batch / record["samples_per_second"] == pytest.approx(record["wall_seconds"], abs=0.06)
    # one who only scores what another process trained leaves what that took as it was
    own = out / "jobs" / "stock_ensemble_2_0"
    first, second = (
        torch.load(own / "model" / place, weights_only=False)["network_weights"]
        for place in [path.relative_to(own / "model") for path in sorted(own.glob("model/*/*/fold_*/*final.pth"))]
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)  # two members, not one twice
    before = json.loads((own / "job.json").read_text())
    # two members, two steps, two patches; the seconds are rounded to tenths
    assert 2 * 2 * 2 / before["samples_per_second"] == pytest.approx(before["wall_seconds"], abs=0.06)
    (own / "job.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "_peak_memory", lambda device: 1e6)
        patch.setattr(job_module, "source_commit", lambda: "later")
        job_module.run(out, Job("stock_ensemble", 2, 0), "cpu")
        assert json.loads((own / "job.json").read_text()) == before
        # nor does one that comes after a process that was ended with its training done and nothing said of that
        notes = json.loads((own / "trainings.json").read_text())
        del notes[-1]["peak_memory_mib"]
        (own / "trainings.json").write_text(json.dumps([*notes[:-1], {**notes[-1], "finished": False}]))
        (own / "job.json").unlink()
        job_module.run(out, Job("stock_ensemble", 2, 0), "cpu")
    known = {"peak_memory_mib": notes[0]["peak_memory_mib"]}
    assert json.loads((own / "job.json").read_text()) == before | known
    assert json.loads((own / "trainings.json").read_text()) == notes
    report = (out / "report.html").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/job.json")}
    assert main(["benchmark", str(protocol), "-i", str(source), "-o", str(out), "--report"]) == 0
    assert (out / "report.html").read_bytes() == report
    assert {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/job.json")} == times
    # results came from elsewhere, without weights
    shutil.rmtree(exported)
    shutil.rmtree(out / "jobs" / "dualcl_2_0" / "model")
    with pytest.raises(DualCLError, match=r"dualcl_2_0 is finished, but its model is not there"):
        job_module.run(out, Job("dualcl_exported", 2, 0), "cpu")


@pytest.mark.parametrize(("system", "told", "mib"), [("linux", 3 * 2**20, 3072), ("darwin", 3 * 2**30, 3072)])
def test_peak_memory_of_the_process_in_the_systems_own_unit(
    system: str, told: int, mib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=told))
    monkeypatch.setattr(job_module, "resource", usage)
    monkeypatch.setattr("sys.platform", system)
    assert job_module._peak_memory("cpu") == mib


def test_to_choose_settings_validation_cases_are_scored_and_test_cases_left_alone(
    source: Path, tmp_path: Path, one_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", in_this_process)
    out = tmp_path / "out"
    changes = {"variants": {"slower": {"arm": "dualcl", "config": {"initial_lr": 0.001}}}, "arms": {"slower": 1}}
    protocol = write(tmp_path, **changes, score="validation")
    assert main(["benchmark", str(protocol), "-i", str(source), "-o", str(out), "-device", "cpu"]) == 0
    results = load_results(out)
    (record,) = results.records
    assert record["config"]["initial_lr"] == 0.001
    assert set(results.cases["case"]) == set(record["split"]["val"])
    predicted = {path.name.removesuffix(".nii.gz") for path in (out / "jobs").rglob("predictions/*.nii.gz")}
    assert predicted == set(record["split"]["val"])
    assert "Scores on the validation cases" in (out / "report.html").read_text(encoding="utf-8")


def test_a_job_in_a_process_of_its_own_and_a_failure_that_stops_nothing(
    source: Path, tmp_path: Path, one_core: None
) -> None:
    protocol = write(tmp_path, arms={"stock": 1, "dualcl": 1}, config={"contrastive_samples": 32})
    out = tmp_path / "out"
    original = Protocol.from_yaml(protocol)
    (out / "jobs" / "stock_2_0").mkdir(parents=True)
    (out / "jobs" / "stock_2_0" / "model_config.yaml").write_text("seed: 99\n", encoding="utf-8")  # of another run
    assert run_benchmark(protocol, source, out, device="cpu", engine=Engine(at_once=2)) == ["stock_2_0"]
    (log,) = (out / "jobs" / "stock_2_0" / "logs").glob("*_log.out")
    assert "belongs to trainings with another configuration" in log.read_text()
    assert (out / "jobs" / "dualcl_2_0" / "job.json").is_file()
    assert original.jobs()[0].name == "stock_2_0"
    with pytest.raises(DualCLError, match="holds results of another protocol"):
        run_benchmark(write(tmp_path, steps=4), source, out, device="cpu")


def test_the_decathlons_layout_is_read_and_planned_as_asked(source: Path, tmp_path: Path, one_core: None) -> None:
    from nnunet_dualcl.benchmark.prepare import prepare

    task = tmp_path / "Task01_Other"
    names = sorted(path.name for path in (source / "labelsTr").iterdir())
    for role in ("imagesTr", "labelsTr"):
        (task / role).mkdir(parents=True)
    for name in names:
        image = sitk.ReadImage(str(source / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")))
        sitk.WriteImage(image, str(task / "imagesTr" / name))
        (task / "labelsTr" / name).write_bytes((source / "labelsTr" / name).read_bytes())
    content = {
        "name": "Other", "modality": {"0": "MRI"}, "numTraining": len(names), "numTest": 0, "test": [],
        "labels": {"0": "background", "1": "organ_a", "2": "organ_b", "3": "nodule"},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }  # fmt: skip
    (task / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    chosen = [names[1].removesuffix(".nii.gz"), names[4].removesuffix(".nii.gz")]
    protocol = Protocol.from_yaml(write(tmp_path, test_cases=chosen, planner="nnUNetPlannerResEncM"))
    out = tmp_path / "out"
    with nnunet_folders(out, results=out / "unused"):
        prepare(protocol, task, out)
    raw = out / "nnUNet_raw" / "Dataset009_Tiny"
    assert sorted(path.name for path in (raw / "labelsTs").iterdir()) == [names[1], names[4]]
    assert len(list((raw / "imagesTr").iterdir())) == 4
    case = next((raw / "imagesTs").iterdir())
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(case)))
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(task / "imagesTr" / case.name.replace("_0000", ""))))
    assert np.array_equal(ours, theirs)
    plans = json.loads((out / "nnUNet_preprocessed" / raw.name / "benchmarkPlans.json").read_text(encoding="utf-8"))
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"].endswith(".ResidualEncoderUNet")
    assert architecture["arch_kwargs"]["n_blocks_per_stage"] == [1, 1, 1]


def test_an_interrupted_preparation_goes_on_unless_the_labeled_cases_changed(
    source: Path, tmp_path: Path, one_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(source, scans)
    command = ["benchmark", str(write(tmp_path)), "-i", str(scans), "-o", str(out), "--prepare"]  # also without a GPU

    def interrupted(*arguments: Any, **options: Any) -> None:
        preprocess_dataset(*arguments, **options)
        raise KeyboardInterrupt

    def preprocessed(kind: str) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in out.glob(f"nnUNet_preprocessed/*/{kind}/*.b2nd")}

    def stop_at_the_end() -> tuple[dict[Path, int], dict[Path, int]]:
        with monkeypatch.context() as patch:
            patch.setattr("nnunet_dualcl.benchmark.prepare.preprocess_dataset", interrupted)
            assert main(command) == 130
        return preprocessed("*_3d_fullres"), preprocessed("*_unlabeled")

    labeled, unlabeled = stop_at_the_end()
    # two files a case; three scans without labels, and a hidden one
    assert (len(labeled), len(unlabeled)) == (2 * 4, 2 * (3 + 1))
    assert not (out / "prepared.json").exists()
    assert stop_at_the_end() == (labeled, unlabeled)
    mended = next(path for path in sorted((scans / "labelsTr").iterdir()) if path.name in {
        file.name for file in (out / "nnUNet_raw" / "Dataset009_Tiny" / "labelsTr").iterdir()
    })  # fmt: skip
    image = sitk.ReadImage(str(mended))
    array = sitk.GetArrayFromImage(image)
    array[array == 1] = 0
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(mended))
    assert main(command) == 0
    again = preprocessed("*_3d_fullres")
    assert labeled.keys() == again.keys()
    assert all(again[path] > labeled[path] for path in labeled)
    times = (again, preprocessed("*_unlabeled"))
    assert main(command) == 0
    assert (preprocessed("*_3d_fullres"), preprocessed("*_unlabeled")) == times
    assert not list(out.glob("labeled.json"))
    assert not (out / "jobs").exists()


def test_a_source_that_will_not_do_is_refused_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DualCLError, match="has no imagesTr and labelsTr"):
        run_benchmark(write(tmp_path), tmp_path, out, device="cpu")
    with pytest.raises(DualCLError, match=r"6 labeled cases are too few; the protocol needs 9 \(5 test, 1 validation"):
        run_benchmark(write(tmp_path, test_cases=5), source, out, device="cpu")
    with pytest.raises(DualCLError, match=r"lacks test_cases, or they repeat: nobody"):
        run_benchmark(write(tmp_path, test_cases=["nobody", "phantom_000"]), source, out, device="cpu")
    with pytest.raises(DualCLError, match=r"tiny.yaml has no arms cps, nothing. It has: stock, stock_all"):
        run_benchmark(write(tmp_path), source, out, device="cpu", only=["nothing", "stock", "cps"])
    if not torch.cuda.is_available():
        with pytest.raises(DualCLError, match="No CUDA device here"):
            run_benchmark(write(tmp_path), source, out, device="cuda")
    assert not out.exists()


JOBS = [Job("stock", 2, 0), Job("dualcl", 2, 0), Job("dualcl", 2, 1), Job("stock_all", "all", 0)]


def finish(folder: Path, job: Job, seconds: float) -> None:
    (folder / "jobs" / job.name).mkdir(parents=True)
    (folder / "jobs" / job.name / "job.json").write_text(json.dumps({"wall_seconds": seconds}), encoding="utf-8")


def test_as_many_jobs_fly_as_asked_for_and_finished_ones_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flying: list[Submitted] = []
    seen: list[tuple[str, int, int]] = []

    def submit(folder: Path, job: Job, device: str, engine: Engine, slot: int) -> Submitted:
        flying.append(Submitted(looks=3))
        seen.append((job.name, slot, sum(entry.looks > 0 for entry in flying)))
        if job.arm != "stock_all":  # which then counts as failed
            finish(folder, job, 60.0)
        return flying[-1]

    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", submit)
    finish(tmp_path, JOBS[0], 60.0)
    assert run_jobs(tmp_path, JOBS, "cpu", Engine(at_once=2), poll_seconds=0) == ["stock_all_all_0"]
    assert seen == [("dualcl_2_0", 0, 1), ("dualcl_2_1", 1, 2), ("stock_all_all_0", 0, 2)]


@pytest.mark.parametrize("succeeds", [True, False])
def test_an_export_waits_for_the_job_it_exports_and_holds_no_slot(
    tmp_path: Path, succeeds: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On Slurm it would hold a GPU, and go on with the other's training where that is queued again."""
    flying: list[tuple[str, Submitted]] = []
    seen: list[tuple[str, list[str]]] = []

    def submit(folder: Path, job: Job, device: str, engine: Engine, slot: int) -> Submitted:
        seen.append((job.name, [name for name, entry in flying if entry.looks > 0]))
        flying.append((job.name, Submitted(looks=3)))
        if job.arm != "dualcl" or succeeds:
            finish(folder, job, 60.0)
        return flying[-1][1]

    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", submit)
    export, source = Job("dualcl_exported", 2, 0), Job("dualcl", 2, 0)
    alone = Job("two_exported", 2, 0)  # the other job is not to be run: it is finished, or run by the export
    exported = {export: source, alone: Job("two", 2, 0)}
    jobs = [export, source, alone]
    failed = run_jobs(tmp_path, jobs, "cpu", Engine(at_once=3), exported=exported, poll_seconds=0)
    first = [("dualcl_2_0", []), ("two_exported_2_0", ["dualcl_2_0"])]
    if succeeds:
        assert (failed, seen[:2], seen[2][0]) == ([], first, export.name)
        assert "dualcl_2_0" not in seen[2][1]
        return
    assert (failed, seen) == (["dualcl_2_0", "dualcl_exported_2_0"], first)
    assert "FAILED dualcl_exported_2_0: not run, for it exports dualcl_2_0" in capsys.readouterr().out


def test_an_interrupt_cancels_what_flies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flying: list[Submitted] = []

    def submit(*_: Any) -> Submitted:
        if len(flying) == 2:
            raise KeyboardInterrupt
        flying.append(Submitted(looks=99))
        return flying[-1]

    monkeypatch.setattr("nnunet_dualcl.benchmark.run._submit", submit)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(tmp_path, JOBS, "cpu", Engine(at_once=3), poll_seconds=0)
    assert [entry.cancelled for entry in flying] == [True, True]


def test_the_time_left_comes_from_finished_jobs_of_the_arm_or_of_all(tmp_path: Path) -> None:
    assert time_left(tmp_path, JOBS, JOBS, 1) == "time left not known before a job is finished"
    finish(tmp_path, JOBS[0], 1800.0)
    finish(tmp_path, JOBS[1], 5400.0)
    # dualcl takes 1.5 h as before, stock_all the mean of the arms, 1 h; two at a time
    assert time_left(tmp_path, JOBS, JOBS[2:], 2) == "about 1.2 h left"


def test_two_processes_never_work_at_one_job(source: Path, tmp_path: Path) -> None:
    write(tmp_path).rename(tmp_path / "protocol.yaml")
    (tmp_path / "jobs" / "stock_2_0").mkdir(parents=True)
    with FileLock(tmp_path / "jobs" / "stock_2_0" / "running.lock"):
        with pytest.raises(DualCLError, match="Another process is at the job"):
            job_module.run(tmp_path, Job("stock", 2, 0), "cpu")


def test_a_job_ends_with_the_process_that_started_it() -> None:
    """The starter dies by SIGKILL, which it cannot pass on; the pipe ends when the last holder of it has ended."""
    waits = "import os; from nnunet_dualcl.benchmark.job import _end_with; parent = os.getppid(); "
    waits += "print('waits', flush=True); _end_with(parent, 0.05)"  # asked later, it might be of who adopted us
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {waits!r}])"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.kill()
        assert process.communicate(timeout=60) == ("", None)


@pytest.mark.parametrize(
    ("named", "expected"),
    [(None, ["0", "1", "0"]), ("3, 5", ["3", "5", "3"]), ("GPU-8932,MIG-1", ["GPU-8932", "MIG-1"])],
)
def test_jobs_of_this_machine_take_turns_on_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, expected: list[str]
) -> None:
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given: list[Any] = []
    monkeypatch.setattr(submitit.AutoExecutor, "submit", lambda self, *arguments: given.append(arguments))
    for slot in range(len(expected)):
        _submit(tmp_path, Job("stock", 2, 0), "cuda", Engine(at_once=2), slot)
    assert [arguments[-1] for arguments in given] == expected
    asked: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check, env: asked.append(env))
    for function, *arguments in given:
        function(*arguments)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in asked] == expected


def test_a_gpu_job_starts_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder holds no protocol, so the job fails where it begins: after all that lies between."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run_jobs(tmp_path, [Job("stock", 2, 0)], "cuda", Engine()) == ["stock_2_0"]
    (log,) = (tmp_path / "jobs" / "stock_2_0" / "logs").glob("*_log.out")
    assert f"Cannot read the protocol {tmp_path / 'protocol.yaml'}" in log.read_text(encoding="utf-8")


def test_an_engine_that_cannot_be_is_refused() -> None:
    for options, message in (
        ({"cluster": "pbs"}, "'local' or on 'slurm', got 'pbs'"),
        ({"at_once": 0}, "At least 1 job"),
        ({"slurm": {"partition": "gpu"}}, "partition: for Slurm alone"),
    ):
        with pytest.raises(DualCLError, match=message):
            Engine(**options)  # type: ignore[arg-type]
