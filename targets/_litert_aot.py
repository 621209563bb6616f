"""LiteRT's ahead-of-time compilers for phone NPUs, each with its vendor's SDK where a user has one.

    model.tflite ─► apply_plugin_main ─► model_<npu>_<soc>.tflite     ops of the NPU as one op of LiteRT's dispatcher
                     libLiteRtCompilerPlugin_<vendor>.so, of ai-edge-litert
                     the vendor's libraries, of the SDK

The compiler is LiteRT's own program, called as its Qualcomm page tells (litert/vendors/qualcomm/doc,
PYTHON_AOT_INSTRUCTIONS.md); its Python wrapper would take an SDK's package that downloads when it is installed.
"""

import os
import re
from importlib import resources
from pathlib import Path

from edgeact._vendor_compiler import Compilation, run_compiler
from edgeact.errors import InputError, MissingDependencyError, ToolchainError
from edgeact.placement import Placement
from edgeact.targets._litert_npu_rules import NPUS, placed_by_compiler

__all__ = ["check", "compile_for"]

# Maker's name, folder of its plugin, and a library that its SDK has for an x86 PC.
_VENDORS = {
    "google-tensor": ("Google", "google_tensor", "liblitert_plugin_compiler.so"),
    "mediatek": ("MediaTek", "mediatek", "libneuron_adapter.so"),
    "qualcomm": ("Qualcomm", "qualcomm", "libQnnHtp.so"),
}
_NEURON_9 = ("MT6993",)  # ai_edge_litert.aot.vendors.mediatek.target.map_soc_to_np_version
_PC = ("x86_64-linux", "x86-64", "x86_64", "host", "")  # in the path of a library for a PC, the surest first


def check(npu: str, soc: str, sdk: Path | None) -> None:
    """Refuse an SDK that does not go with an NPU and its chip.

    Raises:
        InputError: An SDK without an NPU or a chip, a chip without an SDK, or an SDK that lacks the vendor's library.
    """
    if sdk is not None and npu == "none":
        raise InputError(f"--sdk is of an NPU on target 'litert': give --npu, one of {', '.join(NPUS)}")
    if sdk is None:
        if soc != "none":
            raise InputError(f"--soc {soc} is what the compiler is told, which needs the vendor's SDK: give --sdk too")
        return
    if soc == "none":
        raise InputError(f"--sdk compiles for one chip: give --soc, one of {', '.join(NPUS[npu].socs)}")
    _libraries(sdk, npu)


def _libraries(sdk: Path, npu: str) -> Path:
    """The folder of the SDK that holds the vendor's library for this PC."""
    name = _VENDORS[npu][2]
    found = sorted(sdk.rglob(name))
    if not found:
        raise InputError(f"--sdk {sdk} holds no {name}: give the folder of the SDK for {npu}, as its vendor packs it")
    return next(file.parent for word in _PC for file in found if word in str(file.relative_to(sdk)))


def compile_for(model: Path, out: Path, npu: str, soc: str, how: Compilation) -> Placement:
    """Compile `model` into `out` with the SDK, and tell what the compiler took of it.

    Args:
        model: An int8 .tflite whose tensors are named by layer.
        out: A .tflite of LiteRT.
        npu: One of `NPUS`.
        soc: One of its chips.
        how: The time limit, and the SDK.

    Raises:
        MissingDependencyError: The compiler is not in ai-edge-litert for this system.
        ToolchainError: It failed, or took nothing.
    """
    assert how.sdk is not None
    maker, plugin, _ = _VENDORS[npu]
    root = Path(str(resources.files("ai_edge_litert")))
    program = root / "tools" / "apply_plugin_main"
    if not program.is_file():
        raise MissingDependencyError("ai_edge_litert for x86-64 Linux", "litert", "LiteRT's compiler for NPUs")
    libraries = _libraries(how.sdk, npu)
    search = [str(libraries), str(root), os.environ.get("LD_LIBRARY_PATH", "")]
    command: list[str | Path] = [program, "--cmd=apply", f"--model={model}", f"--o={out}", "--err=--"]
    command += [f"--libs={root / 'vendors' / plugin / 'compiler'}", f"--soc_manufacturer={maker}"]
    command += [f"--soc_model={soc.lower() if npu == 'mediatek' else soc}"]
    command += ["--mediatek_sdk_version_type=version9"] if soc in _NEURON_9 else []
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(path for path in search if path)}
    said = run_compiler(command, name=f"LiteRT for {npu}", how=how, in_a_line=_reason, environment=environment)
    if not out.is_file():
        raise ToolchainError(f"LiteRT's compiler for {npu} ended well and wrote no model: {_reason(said)}")
    placement = placed_by_compiler(model, out)
    if not placement.accelerated_ops:
        raise ToolchainError(f"LiteRT's compiler for {npu} took no op of this network for {soc}: {_reason(said)}")
    return placement


def _reason(said: str) -> str:
    """What it says of its first error: the lines below one tell why, each behind a corner."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line.removeprefix("└").strip() for line in lines if line.startswith("└")]
    errors = [re.sub(r"^.*?ERROR: *(?:\[\S*\])? *", "", line) for line in lines if "ERROR" in line]
    return next((line for line in (*causes, *errors, *reversed(lines)) if line), "it says nothing")
