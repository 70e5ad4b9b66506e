"""What pyproject.toml promises is what the second pass of the checks installs."""

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_lowest_releases_that_are_tried_are_those_promised() -> None:
    promised = {}
    for requirement in requires("nnunet-dualcl") or []:
        match = re.match(r"([\w-]+).*?>=([\d.]+)", requirement)
        if match and "extra ==" not in requirement and match[1] != "nnunetv2":  # of which there is one release
            promised[match[1].lower()] = match[2]
    files = sorted((ROOT / ".ci").glob("lowest*.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    tried = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    tried.pop("torchvision")  # goes with torch
    # 1.26 stands for 1.26.0
    assert {name: (release + ".0")[: len(tried.get(name, ""))] for name, release in promised.items()} == tried


def test_an_installed_package_has_its_templates(tmp_path: Path) -> None:
    built = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(built, cwd=ROOT, check=True, capture_output=True)
    assert len(list(tmp_path.rglob("*.j2"))) == len(list((ROOT / "nnunet_dualcl").rglob("*.j2"))) + 1
    assert (tmp_path / "nnunet_dualcl" / "dataset_conversion" / "report.html.j2").is_file()
