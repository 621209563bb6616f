"""The package as it is built and imported: nothing left out of the wheel, nothing heavy imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import edgeact

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_sub_package_is_listed() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("edgeact", *init.parent.relative_to(ROOT).parts[skip:]))
        for top, skip in (("edgeact", 1), ("quantize", 0), ("targets", 0))
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert set(tools["packages"]) == found
    assert tools["package-dir"]["edgeact.targets"] == "targets"


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    import zipfile

    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for top, prefix in (("edgeact", ""), ("quantize", "edgeact/"), ("targets", "edgeact/")):
        for file in (ROOT / top).rglob("*.py"):
            assert prefix + file.relative_to(ROOT).as_posix() in names
    others = ("py.typed", "_head.html", "_report.html", "results.schema.json", "packaged/ir_csn_26-motion.safetensors")
    assert {f"edgeact/{name}" for name in others} <= names


def test_public_names() -> None:
    assert sorted(edgeact.__all__) == [
        "Bundle",
        "ClipSpec",
        "EdgeactError",
        "Gates",
        "InputError",
        "Report",
        "create_model",
        "export",
        "list_models",
        "list_targets",
        "load",
        "load_checkpoint",
        "lower",
        "open_bundle",
        "save_checkpoint",
        "validate",
    ]
    for name in edgeact.__all__:
        assert callable(getattr(edgeact, name))


def test_importing_loads_numpy_and_nothing_heavier() -> None:
    heavy = ["av", "click", "rich", "torch", "openvino", "onnx", "jinja2", "matplotlib", "scipy", "PIL", "safetensors"]
    code = f"import sys, edgeact; print(*[name for name in {heavy} if name in sys.modules])"
    assert python(code) == ""


def test_functions_stay_functions_when_their_modules_are_imported() -> None:
    """`edgeact.export` and `edgeact.validate` are functions in modules of the same name."""
    code = (
        "import edgeact.export, edgeact.validate, edgeact; print(callable(edgeact.export), callable(edgeact.validate))"
    )
    assert python(code) == "True True"


def test_the_command_line_starts_without_torch() -> None:
    lines = [
        "import sys; from edgeact.cli import main",
        "try: main(['--help'])",
        "except SystemExit: print('torch' in sys.modules)",
    ]
    assert python("\n".join(lines)).splitlines()[-1] == "False"


def test_the_packaged_checkpoint_is_small() -> None:
    from edgeact.checkpoint import load_checkpoint, packaged_checkpoint

    assert packaged_checkpoint().stat().st_size <= 4_000_000
    checkpoint = load_checkpoint(packaged_checkpoint())
    assert checkpoint.model == "ir_csn_26"
    assert checkpoint.training["best"]["val_top1"] >= 0.95
