"""What the README tells a newcomer to type is what works: its `console` and `python` blocks are executed in order."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_commands_and_the_code(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {
        "EDGEACT_CACHE": str(cache),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        extra = " --clips 12 --rounds 1 --quiet" if command.startswith("edgeact export") else ""
        extra += " --calibration-clips 12" if "int8" in command else ""
        done = subprocess.run(
            command + extra, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr
    assert (tmp_path / "labelled.mp4").stat().st_size > 1000
    (code,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from edgeact.motion import MOTION_CLASSES

    assert done.stdout.strip() in MOTION_CLASSES


@pytest.mark.parametrize("verb", ["check", "compile", "export", "train", "validate", "run", "models", "targets"])
def test_every_option_it_names_exists(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    from edgeact.cli import main

    with pytest.raises(SystemExit):
        main([verb, "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    lines = re.findall(rf"^(?:edgeact|torchrun .*? edgeact) {verb} (.*(?:\\\n.*)*)", README, flags=re.MULTILINE)
    used = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    assert used <= known | {"--device"}


def test_the_targets_it_lists_are_the_targets_there_are() -> None:
    from edgeact.targets import get_target, list_targets

    for name in list_targets():
        target = get_target(name)
        assert f"| `{name}` |" in README
        assert f"| {', '.join(target.precisions)} | {target.forms[0]} |" in README


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), name
