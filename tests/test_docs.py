"""The documentation says what the code does: links, commands, tables."""

import argparse
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import yaml
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dualcl.benchmark.arms import ARMS
from nnunet_dualcl.benchmark.protocol import Protocol
from nnunet_dualcl.benchmark.results import load_results
from nnunet_dualcl.cli.main import main
from nnunet_dualcl.config import DualCLConfig
from nnunet_dualcl.evaluation.statistics import PairedComparison, paired_comparison, pooled_comparison
from nnunet_dualcl.trainers.DualCLTrainer import DualCLTrainer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(name: str) -> str:
    """A page with its lines joined, so that a sentence is found wherever it wraps."""
    return re.sub(r"\s+", " ", read(name))


def shell_lines(page: Path) -> list[str]:
    """Lines of the page's bash blocks, without comments and `eval "$(...)"` around them."""
    lines = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        lines += [re.sub(r'^eval "\$\((.*)\)"', r"\1", line) for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)]


def table(name: str) -> list[list[str]]:
    """Cells of a page's only table, without its header."""
    rows = [line.strip("|").split("|") for line in read(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def interval(less: Any, digits: int = 4, sign: str = "+") -> str:
    """A comparison as the pages write it; ``sign``: empty where words say which way it goes."""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (less.mean_difference, less.low, less.high))
    return f"{mean} [{low}, {high}]"


def stored_cases(store: str, labeled: int) -> pd.DataFrame:
    """Scores of a store's jobs with so many labels, a row for each case and structure."""
    cases = load_results(ROOT / "benchmarks" / "results" / store).cases
    return cases[cases["labeled"] == labeled]


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in relative if not (page.parent / target).exists()] == []


# ---- commands


class ParsedError(Exception):
    """Raised once a command line is parsed, before anything runs."""


COMMANDS = [
    pytest.param(list(dropwhile(lambda word: re.match(r"\w+=", word), words)), id=f"{page.stem}: {' '.join(words)}")
    for page in PAGES
    for line in shell_lines(page)
    if re.match(r"(\w+=\S+ )?(dualcl|nnUNetv2_\w+) ", line)
    for words in [shlex.split(line, comments=True)]
]


def test_the_commands_are_found() -> None:
    programs = {f"{words[0]} {words[1]}" if words[0] == "dualcl" else words[0] for (words,) in
                (parameters.values for parameters in COMMANDS)}  # fmt: skip
    ours = {
        f"dualcl {name}" for name in ("env", "doctor", "convert", "split", "preprocess", "train", "predict", "export")
    }
    assert programs >= ours | {"nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess"}


@pytest.fixture
def no_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at the datasets, which the documentation's examples do not have here."""
    for name in ("check_train", "check_predict"):
        monkeypatch.setattr(f"nnunet_dualcl.cli.main.{name}", lambda arguments, **_: None)


@pytest.mark.usefixtures("no_preflight")
@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By the parser of the command itself: ours, or nnU-Net's (also for `dualcl train` and `dualcl predict`)."""
    original = argparse.ArgumentParser.parse_known_args

    def parse_only(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        known, unknown = original(self, *arguments, **options)
        if not self.add_help:  # takes --config alone and leaves the rest to nnU-Net
            return known, unknown
        assert unknown == []
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(tmp_path)
    for file in [after for flag, after in pairwise(words) if flag == "--config"]:
        Path(file).touch()
    (program,) = entry_points(group="console_scripts", name=words[0])
    with pytest.raises(ParsedError):
        program.load()()


@pytest.mark.usefixtures("no_preflight")
@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_wrong_command_would_be_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([command, "4", "3d_fullres", "0", "--such_a_flag"])
    assert "usage: dualcl" in capsys.readouterr().err


# ---- make, and the run that starts from nothing


def test_make_targets_exist() -> None:
    code = [*shell_lines(README), *in_backticks(README.read_text(encoding="utf-8"))]
    named = {target for text in code for target in re.findall(r"^make (\w+)", text)}
    assert {"demo", "test"} <= named <= set(re.findall(r"^(\w+):", read("Makefile"), re.M))


def test_the_run_from_nothing_runs_the_readmes_tests() -> None:
    assert "make test" in [line.split("#")[0].strip() for line in shell_lines(README)]
    assert "make test" in read(".ci/run").splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# ---- tables


def test_the_map_names_files_that_exist() -> None:
    code = ("dataset_conversion/", "nnunet_dualcl/", "benchmarks/")
    text = re.sub(r"^```.*?^```", "", read("docs/data_flow.md"), flags=re.M | re.S)
    paths = [path for path in in_backticks(text) if path.startswith(code)]
    assert len(paths) >= 25
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = [name for name in in_backticks(text) if name.endswith(".py") and "/" not in name]
    assert [name for name in modules if not list((ROOT / "nnunet_dualcl").rglob(name))] == []


def test_the_reference_lists_every_field_with_its_default() -> None:
    rows = {in_backticks(row[0])[0]: row for row in table("docs/reference/config.md")}
    fields = dataclasses.fields(DualCLConfig)
    assert list(rows) == [field.name for field in fields]
    hints = get_type_hints(DualCLConfig)
    for field in fields:
        default = yaml.safe_load(in_backticks(rows[field.name][1])[0])
        assert (default, type(default)) == (field.default, type(field.default)), field.name
        if get_origin(hints[field.name]) is Literal:
            assert set(in_backticks(rows[field.name][2])) == set(get_args(hints[field.name])), field.name


def test_the_reference_lists_every_field_of_a_protocol_and_every_arm() -> None:
    rows = {in_backticks(row[0])[0]: row for row in table("docs/reference/protocol.md")}
    fields = {field.name: field for field in dataclasses.fields(Protocol)}
    assert set(rows) == set(fields)
    for name, field in fields.items():
        if rows[name][1] == "required":
            assert field.default is field.default_factory is dataclasses.MISSING, name
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        stated = yaml.safe_load(in_backticks(rows[name][1])[0])
        assert stated == (list(default) if isinstance(default, tuple) else default), name
    page = read("docs/reference/protocol.md")
    assert re.findall(r"^- `(\w+)`: (.+)$", page, re.M) == [(name, arm.title) for name, arm in ARMS.items()]
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(Protocol(**yaml.safe_load(example)).jobs()) == 7


def test_every_supported_feature_has_its_test_and_every_refusal_its_message() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "nnunet_dualcl").rglob("*.py"))
    rows = table("docs/reference/support.md")
    assert len(rows) > 20
    for feature, state, test in rows:
        if state.startswith("refused"):
            (message,) = in_backticks(state)
            assert message in code, feature
        else:
            assert state.startswith(("supported", "noticed", "shown", "meant")), feature
        assert in_backticks(test) or state.startswith("meant") or test == "every test", feature
        for name in in_backticks(test):
            file, function = name.split("::")
            assert f"\ndef {function}(" in read(f"tests/{file}"), feature


def test_the_overridden_methods_are_listed() -> None:
    listed = [name for row in table("docs/extension_points.md") for name in in_backticks(row[0])]
    overridden = {name for name, value in vars(DualCLTrainer).items()
                  if hasattr(nnUNetTrainer, name) and callable(getattr(DualCLTrainer, name))}  # fmt: skip
    assert sorted(listed) == sorted(overridden)


# ---- numbers


def test_dice_of_trainings_stands_in_the_result_file() -> None:
    rows = json.loads(read("benchmarks/results/hippocampus_exploration.json"))["rows"]
    stored = sorted((row["steps"], f"{row['mean_dice']:.4f}") for row in rows)
    for row in rows:
        cases = row["dice_per_case"].values()
        assert sum(map(sum, cases)) / (2 * len(cases)) == pytest.approx(row["mean_dice"], abs=1e-4)
        name, trainer = row["training"], row["trainer"]
        assert name.startswith("stock nnU-Net") == trainer.startswith("nnUNetTrainer"), name
    tried = read("docs/settings_tried.md")
    shown = re.findall(r"^\|.*\| ([\d,]+) \| (0\.\d{4}) \|", tried, re.M)
    assert sorted((int(steps.replace(",", "")), dice) for steps, dice in shown) == stored


def test_sizes_tried_on_openkbp_stand_in_the_result_file() -> None:
    page = prose("docs/benchmarks.md")
    for row in json.loads(read("benchmarks/results/openkbp_exploration.json"))["rows"]:
        values = [dice for case in row["dice_per_case"].values() for dice in case.values()]
        assert sum(values) / len(values) == pytest.approx(row["mean_dice"], abs=1e-4)
        assert f"{row['mean_dice']:.4f} on the {'test' if row['scored'] == 'test' else 'validation'} cases" in page


def test_what_quantiles_leave_out_stands_in_the_result_files() -> None:
    page = prose("docs/settings_tried.md")
    first, half, _ = json.loads(read("benchmarks/results/reliability_sides.json"))["rows"]
    said = "{:.0f} % of the background voxels that touch a predicted structure are left out and {:.0f} % of the"
    assert said.format(*(100 * first[key] for key in ("shell_dropped", "edge_dropped"))) in page
    assert (
        "halfway {:.0f} % and {:.0f} %".format(*(100 * half[key] for key in ("shell_dropped", "edge_dropped"))) in page
    )
    assert (
        f"{first['false_left']:,} call background a structure and {first['missed_left']} a structure background" in page
    )
    rows = json.loads(read("benchmarks/results/hippocampus_pool.json"))["rows"]
    dice = {row["training"]: pd.DataFrame(row["dice_per_case"]).mean() for row in rows}
    assert {len(cases) for cases in dice.values()} == {145}
    for name in ("no voxel left out", "L_u on all voxels"):
        less = paired_comparison(dice[f"{name}, draw 2"], dice["DualCL, draw 2"])
        assert interval(less) in page


def test_two_networks_alone_and_together_are_those_of_the_result_file() -> None:
    rows = json.loads(read("benchmarks/results/hippocampus_two_networks.json"))["rows"]
    assert {len(row["dice_per_case"]) for row in rows} == {145}
    for row in rows:
        cases = row["dice_per_case"].values()
        assert sum(map(sum, cases)) / (2 * len(cases)) == pytest.approx(row["mean_dice"], abs=1e-4)
    by_part = {(row["training"], row["draw"], row["part"]): f"{row['mean_dice']:.4f}" for row in rows}
    page = prose("docs/settings_tried.md")
    for name, draw, said in (
        ("DualCL, two networks", 1, "network A has {a}, B {b} and their mean {mean};"),
        ("DualCL, two networks, B with transposed convolutions", 0, "in B, on draw 0, {a}, {b} and {mean};"),
        ("DualCL, two networks of nnU-Net's architecture", 1, "of the plans, on draw 1, {a}, {b} and {mean}."),
    ):
        assert said.format(**{part: by_part[name, draw, part] for part in ("a", "b", "mean")}) in page


def test_outline_and_parts_are_those_of_the_result_file() -> None:
    rows = json.loads(read("benchmarks/results/hippocampus_outline.json"))["rows"]
    for row in rows:
        for key in ("whole", "right_part"):
            values = [case[key] for case in row["per_case"].values()]
            assert sum(values) / len(values) == pytest.approx(row[key], abs=1e-4)
    stock, ours = ([row for row in rows if row["training"] == name] for name in ("stock nnU-Net", "DualCL"))
    page = prose("docs/settings_tried.md")
    assert f"On the {rows[0]['cases']} pool cases" in page
    outline = [
        f"from {a['whole']:.3f} to {b['whole']:.3f} in draw {a['draw']}" for a, b in zip(stock, ours, strict=True)
    ]
    assert " and ".join(outline) in page
    parts = [f"{a['right_part']:.3f} and {b['right_part']:.3f} with {a['training']}" for a, b in (stock, ours)]
    assert ", ".join(parts) in page
    every = [row for row in rows if row["training"] == "DualCL, L_u on all voxels"]
    assert [row["draw"] for row in every] == [row["draw"] for row in ours] == [0, 1]
    for key in ("whole", "right_part"):
        for new, default in zip(every, ours, strict=True):
            scores = (pd.DataFrame(row["per_case"]).loc[key] for row in (new, default))
            less = paired_comparison(*scores)
            assert interval(less) in page


def test_costs_stand_in_the_result_files() -> None:
    page = read("docs/costs.md")
    step = json.loads(read("benchmarks/results/step_cost.json"))
    seconds, memory, ratio = step["seconds"], step["peak_memory_mib"], step["ratios"]
    titles = {
        "stock nnU-Net": "stock_step",
        "two stock nnU-Net steps (as many samples)": "two_stock_steps",
        "stock nnU-Net, twice the batch": "stock_twice_the_batch",
        "the same, both halves": "bare_network",
        "DualCL": "dualcl",
        "DualCL, `low_memory`": "low_memory",
        "DualCL, `decoder_checkpointing`": "decoder_checkpointing",
        "DualCL, both options": "both_options",
    }
    for title, variant in titles.items():
        assert f"| {title} | {seconds[variant]:.3f} | {memory[variant]:.0f} |" in page
    low_memory = "DualCL, `low_memory`"
    for title, name, time, space in (
        ("DualCL / bare network", "dualcl", "bare_network", "bare_network"),
        ("DualCL / stock step", "dualcl", "stock_step", "stock_step"),
        ("DualCL / stock, twice the batch", "dualcl", "stock_twice_the_batch", "stock_twice_the_batch"),
        ("DualCL / two stock steps", "dualcl", "two_stock_steps", "stock_step"),
        (f"{low_memory} / stock step", "low_memory", "stock_step", "stock_step"),
        (f"{low_memory} / bare network, labeled half", "low_memory", None, "bare_half"),
        (f"{low_memory} / stock, twice the batch", "low_memory", "stock_twice_the_batch", "stock_twice_the_batch"),
    ):
        slower = f"{ratio[f'{name} / {time}']:.2f} " if time else ""
        assert f"| {title} | {slower}| {ratio[f'memory {name} / {space}']:.2f} |" in page
    times = [f"{ratio[f'dualcl / {other}']:.1f} times" for other in ("stock_step", "stock_twice_the_batch")]
    assert all(words in README.read_text(encoding="utf-8") for words in times)
    said = f"({memory['bare_half'] / memory['stock_step']:.2f} times stock's memory on the same patches)"
    assert said in prose("docs/costs.md")
    for name in ("loader_wait", "loader_wait_small"):
        result = json.loads(read(f"benchmarks/results/{name}.json"))
        patch = "\N{MULTIPLICATION SIGN}".join(map(str, result["setting"]["patch"]))
        for workers, trainers in result["waiting"].items():
            for trainer, title in (
                ("stock", "stock nnU-Net"),
                ("dualcl", "DualCL"),
                ("stock, DualCL's step", "stock nnU-Net's batches, DualCL's step"),
            ):
                median, mean, own = (
                    1000 * trainers[trainer][key] for key in ("median_wait_s", "mean_wait_s", "step_s")
                )
                row = f"| {workers.split()[0]} | {patch} | {title} | {median:.2f} | {mean:.2f} | {own:.0f} |"
                assert row in page
    kills = json.loads(read("benchmarks/results/kill_while_saving.json"))
    assert f"of {kills['kills']} processes killed" in page
    assert f"all {kills['loadable']} left a loadable checkpoint" in " ".join(page.split())
    assert f"**{step['ratios']['dualcl / network_and_teacher']:.2f}**" in page
    paper = json.loads(read("benchmarks/results/step_cost_without_teacher.json"))
    assert f"took {paper['ratios']['dualcl / bare_network']:.2f} times the bare network" in " ".join(page.split())
    ratios = json.loads(read("benchmarks/results/preprocess_cost.json"))["ratios"]
    wall, processor = (ratios[f"dualcl / stock, {clock}"] for clock in ("wall", "processor"))
    assert f"| **{wall:.2f}** | **{processor:.2f}** |" in page


def test_costs_on_a_gpu_stand_in_the_result_files() -> None:
    section = read("docs/costs.md").split("On an H100 (fp16")[1].split("\n## ")[0]
    runs = [
        json.loads(read(f"benchmarks/results/step_cost_gpu{name}.json")) for name in ("", "_small", "_small_compiled")
    ]
    assert all(run["circumstances"]["commit"] in section for run in runs)

    def cell(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    def assert_row(title: str, cells: list[str]) -> None:
        assert f"| {title} | {' | '.join(cells)} |".replace("  ", " ") in section.replace("**", ""), title

    for title, variant in (
        ("stock nnU-Net", "stock_step"),
        ("stock nnU-Net, twice the batch", "stock_twice_the_batch"),
        ("bare network with both decoders, both halves", "bare_network"),
        ("and the teacher's forward pass", "network_and_teacher"),
        ("DualCL", "dualcl"),
        ("DualCL, `low_memory`", "low_memory"),
    ):
        measured = [(run["seconds"].get(variant), run["peak_memory_mib"].get(variant)) for run in runs]
        assert_row(title, [text for time, space in measured for text in (cell(time, 3), cell(space, 0))])
    for title, pair, space in (
        ("DualCL / bare network and teacher", "dualcl / network_and_teacher", None),
        ("DualCL / bare network", "dualcl / bare_network", "dualcl / bare_network"),
        ("DualCL / stock step", "dualcl / stock_step", "dualcl / stock_step"),
        ("DualCL / stock, twice the batch", "dualcl / stock_twice_the_batch", "dualcl / stock_twice_the_batch"),
        ("DualCL, `low_memory` / bare network, labeled half", None, "low_memory / bare_half"),
    ):
        ratios = [(run["ratios"].get(pair), run["ratios"].get(f"memory {space}")) for run in runs]
        assert_row(title, [text for pair in ratios for text in (cell(pair[0], 2), cell(pair[1], 2))])
    readme = prose("README.md")
    for other, words in (("stock_step", "{} times on an H100 ({} times with small patches)"),
                         ("stock_twice_the_batch", "{} times on the H100 ({} times)")):  # fmt: skip
        assert words.format(*(f"{run['ratios'][f'dualcl / {other}']:.1f}" for run in runs[:2])) in readme


def test_the_readme_gives_the_dice_of_the_stored_results() -> None:
    def dice_of(store: str, labeled: int) -> dict[str, float]:
        tables = read("docs/benchmarks.md").split(f"<!-- results of {store} -->")[1].split("<!-- end")[0]
        tables = tables.split(f": {labeled} labeled cases\n")[1].split("\n### ")[0]
        found = re.findall(r"^\| ([^|]+) \| \d \| (0\.\d{4})", tables, re.M)
        return {arm: float(value) for arm, value in reversed(found)}  # the table of means comes first

    dice = dice_of("hippocampus_cpu", 5)
    text = prose("README.md")
    few, many = dice["stock nnU-Net"], dice["stock nnU-Net, all labels"]
    ours, exported = dice["DualCL"], dice["DualCL, exported: decoder A alone"]
    assert f"mean Dice {ours:.3f} ({exported:.3f} exported, see below)," in text
    assert f", stock nnU-Net on the same 5 labels {few:.3f}, on all 130 labels {many:.3f};" in text
    by_case = stored_cases("hippocampus_cpu", 5).groupby(["arm", "draw", "case"])["dice"].mean()
    pairs = {draw: (by_case["dualcl", draw], by_case["dualcl_labeled_only", draw]) for draw in range(3)}
    less = pooled_comparison(pairs)
    assert f", only {less.mean_difference:.4f} on hippocampus." in text
    page = prose("docs/benchmarks.md")
    assert f"DualCL is {interval(less, sign='')} above it" in page
    dice = dice_of("hippocampus_cpu", 10)
    few, ours, exported = (dice[arm] for arm in ("stock nnU-Net", "DualCL", "DualCL, exported: decoder A alone"))
    assert f"; with 10 labels {ours:.3f} ({exported:.3f}), stock {few:.3f}." in text
    dice = dice_of("hippocampus_gpu_short", 5)
    said = "5 labels, {:.3f}, stock {:.3f} (all labels {:.3f})."
    assert said.format(*(dice[arm] for arm in ("DualCL", "stock nnU-Net", "stock nnU-Net, all labels"))) in text
    dice = dice_of("openkbp_cpu", 6)
    few, ours, exported = dice["stock nnU-Net"], dice["DualCL"], dice["DualCL, exported: decoder A alone"]
    everything = dice["stock nnU-Net, all labels"]
    said = (
        f"{ours:.3f} ({exported:.3f} exported), stock nnU-Net {few:.3f}; on all 50 labels {everything:.3f} in one draw."
    )
    assert said in text


def test_the_control_on_openkbp_is_that_of_the_stored_cases() -> None:
    dice = stored_cases("openkbp_cpu", 6).groupby(["arm", "draw", "case"])["dice"].mean()
    page = prose("docs/benchmarks.md")

    def less(arm: str, other: str) -> list[PairedComparison]:
        """Each of the three draws, then all together."""
        pairs = {draw: (dice[arm, draw], dice[other, draw]) for draw in range(3)}
        return [*(paired_comparison(*pair) for pair in pairs.values()), pooled_comparison(pairs)]

    control, gain, exported = (
        less(*arms)[-1]
        for arms in (
            ("dualcl_labeled_only", "stock"),
            ("dualcl", "stock"),
            ("dualcl_exported", "dualcl_labeled_only"),
        )
    )
    *draws, ours = less("dualcl", "dualcl_labeled_only")
    above_stock, above, *by_draw, of_export = (interval(each, sign="") for each in (control, ours, *draws, exported))
    means = [dice["dualcl_labeled_only", draw].mean() for draw in range(3)]
    assert "The control has {:.4f}, {:.4f} and {:.4f} in the three draws:".format(*means) in page
    assert f": {above_stock} above stock nnU-Net. DualCL is {above} above the control: " in page
    one, two, three = by_draw
    assert f"above the control: {one}, {two} and {three}; exported {of_export}. So of a gain of " in page
    assert f"So of a gain of {gain.mean_difference:.4f} {ours.mean_difference:.4f} are the unlabeled scans'" in page
    said = f"DualCL is {ours.mean_difference:.4f} above the control, which has the labeled scans only"
    assert f"{said} (three draws, each interval clear of 0): nearly half of the {gain.mean_difference:.4f}" in page
    assert min(draw.low for draw in draws) > 0
    assert 0.4 < ours.mean_difference / gain.mean_difference < 0.5
    assert f"in their place DualCL is {ours.mean_difference:.4f} lower on OpenKBP, only" in prose("README.md")


def test_two_whole_networks_have_what_is_stored() -> None:
    dice = stored_cases("hippocampus_cpu", 5).groupby(["arm", "draw", "case"])["dice"].mean()

    def less(arm: str, other: str) -> PairedComparison:
        return pooled_comparison({draw: (dice[arm, draw], dice[other, draw]) for draw in (0, 1)})

    whole, of_one = "dualcl_two_networks", "dualcl_two_networks_exported_a"
    two, exported = ([dice[arm, draw].mean() for draw in (0, 1)] for arm in (whole, of_one))
    by_draw = [interval(paired_comparison(dice[whole, draw], dice["dualcl", draw])) for draw in (0, 1)]
    page = prose("docs/benchmarks.md")
    assert "have {:.4f} and {:.4f} in draws 0 and 1".format(*two) in page
    assert (
        f": {interval(less(whole, 'dualcl'), sign='')} above DualCL, by draw {by_draw[0]} and {by_draw[1]}, and "
        in page
    )
    assert f"and {interval(less(whole, 'stock'), sign='')} above stock nnU-Net. Not all of that" in page
    residual = stored_cases("hippocampus_resenc_cpu", 5).groupby(["arm", "draw", "case"])["dice"].mean()["stock"]
    above = pooled_comparison({draw: (dice[whole, draw], residual[draw]) for draw in (0, 1)})
    with_that_encoder = [residual[draw].mean() for draw in (0, 1)]
    gain = pooled_comparison({draw: (residual[draw], dice["stock", draw]) for draw in (0, 1)})
    assert f"is {interval(gain, sign='')} above itself with the plain one" in page
    by_itself = [residual[draw].mean() - dice["stock", draw].mean() for draw in (0, 1)]
    assert abs(by_itself[0]) < 0.0005
    assert f"by {by_itself[1]:.4f} in draw 1" in page
    assert "has {:.4f} and {:.4f}, so they are {} above it".format(*with_that_encoder, interval(above, sign="")) in page
    of_exports = interval(less(of_one, "dualcl_exported"), sign="")
    assert "network A alone has {:.4f} and {:.4f}, {} above DualCL's export".format(*exported, of_exports) in page
    assert less(whole, "stock").mean_difference > 0.03


def test_self_training_and_twice_the_batch_are_those_of_the_stored_cases() -> None:
    dice = stored_cases("hippocampus_cpu", 5).groupby(["arm", "draw", "case"])["dice"].mean()
    page = prose("docs/benchmarks.md")
    below, above = (
        pooled_comparison({draw: (dice[arm, draw], dice[less, draw]) for draw in range(3)}).mean_difference
        for arm, less in (("self_training", "stock"), ("dualcl", "self_training"))
    )
    mean = dice["self_training"].groupby("draw").mean().mean()
    assert (
        f"it has {mean:.4f}, {-below:.4f} below stock nnU-Net, which labels for it, and below it in every draw" in page
    )
    assert f"DualCL is {above:.4f} above it." in page
    assert all(dice["self_training", draw].mean() < dice["stock", draw].mean() for draw in range(3))
    twice = dice["stock_twice_the_batch", 0]
    less = paired_comparison(twice, dice["stock", 0])
    assert f"has {twice.mean():.4f} on draw 0, {interval(less)} above stock nnU-Net" in page


def test_distances_on_openkbp_are_those_of_the_stored_cases() -> None:
    cases = stored_cases("openkbp_cpu", 6)
    hd95 = cases.groupby(["arm", "draw", "case"])["hd95_mm"].mean()

    def less(baseline: str, without: str = "") -> str:
        def of(arm: str, draw: int) -> pd.Series:
            return hd95.loc[arm, draw].drop(without, errors="ignore")

        found = pooled_comparison({draw: (of("dualcl", draw), of(baseline, draw)) for draw in range(3)})
        return interval(found, digits=2)

    page = prose("docs/benchmarks.md")
    assert f"the mean does not: {less('stock')} mm against stock nnU-Net, {less('stock', 'kbp_173')} without" in page
    assert f", and {less('dual_decoder')} mm against two decoders without unlabeled terms" in page
    cords = cases[cases["label"] == "SpinalCord"].assign(far=lambda rows: rows["hd95_mm"] > 100)
    far = 100 * cords.groupby(["arm", "draw"])["far"].mean()
    ours, stock = far.loc["dualcl"], far.loc["stock"]
    said = f"cords {min(ours):.0f} to {max(ours):.0f} % are off by more than 100 mm, of stock nnU-Net's"
    assert f"{said} {min(stock):.0f} to {max(stock):.0f} % (with all labels" in page
    stored = json.loads(read("benchmarks/results/openkbp_largest_component.json"))
    after = {name: job["after"]["hd95_mm"] for name, job in stored["jobs"].items()}
    said = "DualCL has a mean HD95 of {:.1f} and {:.1f} mm where stock nnU-Net has {:.1f} and {:.1f}: "
    assert said.format(*(after[f"{arm}_6_{draw}"] for arm in ("dualcl", "stock") for draw in (1, 2))) in page
    before, row = (row for row in stored["differences"] if row["arm"] == "dualcl")
    assert row["draws"] == before["draws"] == [1, 2]
    assert "{mean_difference:.1f} mm [{low:.1f}, {high:.1f}]".format(**row["hd95_mm"]) in page
    grown = [each["dice"]["mean_difference"] for each in (before, row)]
    assert "the difference grows from {:.4f} to {:.4f}".format(*grown) in page

    def change(arm: str) -> float:
        jobs = [stored["jobs"][f"{arm}_6_{draw}"] for draw in (1, 2)]
        return float(np.mean([job["after"]["dice"] - job["before"]["dice"] for job in jobs]))

    # of values with four digits
    said = re.search(r"In Dice DualCL has (0\.\d+) more with it and stock nnU-Net (0\.\d+) less", page)
    assert said is not None
    assert [float(part) for part in said.groups()] == pytest.approx([change("dualcl"), -change("stock")], abs=1e-4)


def test_labels_of_moved_patches_are_those_of_the_stored_run() -> None:
    page = prose("docs/settings_tried.md")
    stored = json.loads(read("benchmarks/results/teacher_view.json"))["rows"]
    moved = [row for row in stored if row["rotated_and_scaled"]]
    assert len(moved) == 4
    for row in moved:
        if row["teacher_view"] == "weak":
            assert f"Dice on unlabeled cases is {row['dice_augmented']:.2f}, where labels" in page
            assert f"moved voxels have {row['dice_carried_over']:.2f}" in page
    trained = [row["dice_augmented"] for row in moved if row["teacher_view"] == "plain"]
    assert f"remain at {sum(trained) / len(trained):.2f} on moved patches" in page


def test_the_cost_of_a_structure_set_is_the_stored_run() -> None:
    stored = json.loads(read("benchmarks/results/rtstruct_cost.json"))
    section = read("docs/costs.md").split("## What converting a DICOM structure set costs")[1].split("\n## ")[0]
    rows = {
        "reading and filling here": "dualcl",
        "the same, half of the slices": "half the slices",
        "the same, twice the points": "twice the points",
        "all the way to a dataset: checks, compression, picture, report": "dualcl to a dataset",
        "rt-utils": "rt-utils",
        "plastimatch, the whole process": "plastimatch",
    }
    shown = {
        cells[0]: cells[1:]
        for cells in re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]*) ?\|$", section, re.M)
    }
    assert set(shown) == set(rows)
    for text, name in rows.items():
        seconds, ratio, volumes = shown[text]
        assert seconds == f"{stored['seconds']['processor'][name]:.2f}"
        assert float(ratio) == pytest.approx(stored["ratios"].get(f"{name} / dualcl, processor", 1), abs=0.005)
        peak = stored["peak_memory_in_volumes"].get(name)
        assert volumes == ("" if peak is None else f"{peak:.2f}")
    assert stored["circumstances"]["commit"] in section


def test_converting_from_python_works_as_written(tmp_path: Path) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```", read("docs/reference/conversion.md"), re.M | re.S)
    for place, values in (("images", np.arange(60)), ("masks", np.arange(60) % 4)):
        (tmp_path / "export" / place).mkdir(parents=True)
        image = sitk.GetImageFromArray(values.reshape(3, 4, 5).astype(np.int16))
        sitk.WriteImage(image, str(tmp_path / "export" / place / "anna.nii.gz"))
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, check=True, encoding="utf-8"
    )
    assert "1 labeled, 0 unlabeled and 0 test case(s); 0 failed" in done.stdout
