"""Engines: built once for a machine, verified whenever they are loaded, never taken from another user."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeact.engine import Engine, build_engine, open_engine, remove_engine
from edgeact.errors import EngineError

HERE = {"device": "Orin", "TensorRT": "10.3.0"}


class Builder:
    """Writes a file, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self, out: Path) -> Mapping[str, Any]:
        self.built += 1
        (out / "sub").mkdir()
        (out / "sub" / "engine.plan").write_bytes(b"native code")
        return {"took_s": self.built}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"a network")
    (folder / "report.json").write_bytes(b"what has no part in it")
    return folder


def build(bundle: Path, machine: Mapping[str, str] = HERE, *, force: bool = False) -> tuple[Engine, Builder]:
    builder = Builder()
    return build_engine("tensorrt", bundle, machine, builder, force=force), builder


def test_it_is_built_once_and_stamped(bundle: Path, own_cache: Path) -> None:
    engine, builder = build(bundle)
    assert (engine.folder / "sub" / "engine.plan").read_bytes() == b"native code"
    assert engine.folder.is_relative_to(own_cache / "engines" / "tensorrt")
    assert (engine.stamp["machine"], engine.stamp["built"]) == (HERE, {"took_s": 1})
    assert list(engine.stamp["files"]) == ["sub/engine.plan"]
    (bundle / "report.json").write_bytes(b"another")
    assert build(bundle)[1].built == 0
    assert open_engine("tensorrt", bundle, HERE) == engine
    assert build(bundle, force=True)[1].built == builder.built == 1
    assert [path.name for path in engine.folder.parent.iterdir()] == [engine.folder.name]
    for folder in (engine.folder, *engine.folder.parents[:3]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_other_settings_are_another_engine(bundle: Path) -> None:
    builder = Builder()

    def build_with(**settings: int) -> Engine:
        return build_engine("tensorrt", bundle, HERE, builder, settings=settings)

    for settings, built in (({}, 1), ({"workspace_mb": 64}, 2), ({"workspace_mb": 64}, 2), ({"workspace_mb": 8}, 3)):
        assert build_with(**settings).stamp["settings"] == settings
        assert builder.built == built
    assert open_engine("tensorrt", bundle, HERE).stamp["settings"] == {"workspace_mb": 8}
    assert build_with().stamp["settings"] == {}, "all of the memory, as asked"
    assert builder.built == 4


def test_where_there_is_none_the_next_command_is_named(bundle: Path) -> None:
    with pytest.raises(EngineError, match=rf"not compiled on this machine yet: run `edgeact compile {bundle}`"):
        open_engine("tensorrt", bundle, HERE)


def test_another_machine_or_tool_is_told_with_both_values(bundle: Path) -> None:
    build(bundle)
    build(bundle, {"device": "Xavier", "TensorRT": "8.5.2"})
    message = r"compiled for the TensorRT '10.3.0', and here it is '10.7.0': run `edgeact compile"
    with pytest.raises(EngineError, match=message):
        open_engine("tensorrt", bundle, HERE | {"TensorRT": "10.7.0"})
    with pytest.raises(EngineError, match=r"compiled for the CUDA None, and here it is '12.6'"):
        open_engine("tensorrt", bundle, HERE | {"CUDA": "12.6"})


def test_another_artifact_is_another_engine(bundle: Path) -> None:
    build(bundle)
    (bundle / "model.onnx").write_bytes(b"another network")
    with pytest.raises(EngineError, match="not compiled on this machine yet"):
        open_engine("tensorrt", bundle, HERE)


def test_an_engine_moved_from_elsewhere(bundle: Path) -> None:
    engine, _ = build(bundle)
    other, _ = build(bundle, HERE | {"device": "Xavier"})
    shutil.rmtree(engine.folder)
    other.folder.rename(engine.folder)
    with pytest.raises(EngineError, match=r"is for the device 'Xavier', and here it is 'Orin': run `edgeact compile"):
        open_engine("tensorrt", bundle, HERE)


def change(engine: Path) -> None:
    (engine / "sub" / "engine.plan").write_bytes(b"other code!")


def add(engine: Path) -> None:
    (engine / "more.plan").write_bytes(b"other code!")


def unstamp(engine: Path) -> None:
    (engine / "stamp.json").unlink()


def damage_stamp(engine: Path) -> None:
    (engine / "stamp.json").write_text("[]")


def empty_stamp(engine: Path) -> None:
    stamp = json.loads((engine / "stamp.json").read_text())
    (engine / "stamp.json").write_text(json.dumps(stamp | {"machine": None}))


@pytest.mark.parametrize("damage", [change, add, unstamp, damage_stamp, empty_stamp])
def test_one_that_changed_is_refused_and_built_anew(damage: Callable[[Path], None], bundle: Path) -> None:
    engine, _ = build(bundle)
    damage(engine.folder)
    with pytest.raises(EngineError, match="has changed since it was compiled: run `edgeact compile"):
        open_engine("tensorrt", bundle, HERE)
    assert build(bundle)[1].built == 1
    assert open_engine("tensorrt", bundle, HERE).stamp["files"] == engine.stamp["files"]


def open_to_all(engines: Path) -> None:
    engines.chmod(0o777)


def link(engines: Path) -> None:
    engines.rename(engines.with_name("elsewhere"))
    engines.symlink_to(engines.with_name("elsewhere"))


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no owners of this kind")
@pytest.mark.parametrize("expose", [open_to_all, link])
def test_a_cache_that_others_could_write_is_refused(
    expose: Callable[[Path], None], bundle: Path, own_cache: Path
) -> None:
    build(bundle)
    expose(own_cache / "engines")
    message = r"engines is a link, belongs to another user or can be written by others.*EDGEACT_CACHE"
    with pytest.raises(EngineError, match=message):
        open_engine("tensorrt", bundle, HERE)
    for force in (False, True):
        with pytest.raises(EngineError, match=message):
            build(bundle, force=force)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no owners of this kind")
def test_a_cache_of_another_user_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(EngineError, match="belongs to another user"):
        open_engine("tensorrt", bundle, HERE)


def test_what_fails_leaves_nothing_behind(bundle: Path, own_cache: Path) -> None:
    def fail(out: Path) -> Mapping[str, Any]:
        (out / "half").write_bytes(b"half")
        raise ValueError("no such kernel")

    engine, _ = build(bundle)
    with pytest.raises(ValueError, match="no such kernel"):
        build_engine("tensorrt", bundle, HERE, fail, force=True)
    assert open_engine("tensorrt", bundle, HERE) == engine
    remove_engine(engine)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]
