"""Vela, Arm's compiler for Ethos-U, in a process of its own, and what it tells of the network: placement, estimates.

    model.tflite ─► vela ─► model_vela.tflite     commands for the NPU, and what stays on the CPU
                      ├───► *_per-layer.csv       cycles of each op, by the name of its result
                      └───► *_summary_*.csv       time, memory and traffic of a run

All figures are of Vela's model of the NPU and its memories: estimates, never measured.
"""

import csv
import importlib.metadata
import json
import math
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeact._vendor_compiler import Compilation, run_compiler
from edgeact.errors import ToolchainError
from edgeact.placement import PlacedOp, Placement, write_placement

__all__ = ["Estimate", "compile_for_npu"]

# Ops that move or retype data compute nothing, on the NPU or beside it.
_MOVEMENT = (
    *("Cast", "Concat", "Concatenation", "Dequantize", "ExpandDims", "Pack", "Pad", "PadV2", "Quantize", "Reshape"),
    *("Slice", "Split", "SplitV", "Squeeze", "StridedSlice", "Transpose", "Unpack"),
)

_BYTES = {"UINT8": 1, "INT8": 1, "BOOL": 1, "INT16": 2, "FLOAT16": 2, "INT32": 4, "FLOAT32": 4, "INT64": 8}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What Vela estimates of one run.

    Attributes:
        by: The compiler and its version.
        config: The accelerator.
        system_config: Clock and memories, by Vela's name.
        memory_mode: What lies in which memory, by Vela's name.
        ms: Time.
        moving_ms: Of it, what ops on the NPU take that only move or retype data, which are no layer's.
        cycles: At `clock_mhz`.
        clock_mhz: Of the NPU.
        memory_kb: KiB that the network takes up, by memory.
        traffic_mb: MB read and written, by memory.
        macs: Multiply-accumulates as compiled.
        npu_alone: Ops stay on the CPU, of which Vela knows no time: `ms`, `cycles` and `macs` are without them.
    """

    by: str
    config: str
    system_config: str
    memory_mode: str
    ms: float
    moving_ms: float
    cycles: int
    clock_mhz: float
    memory_kb: Mapping[str, float]
    traffic_mb: Mapping[str, float]
    macs: int
    npu_alone: bool

    def __str__(self) -> str:
        memory = ", ".join(f"{name} {kb:,.0f} KiB" for name, kb in self.memory_kb.items())
        traffic = ", ".join(f"{name} {mb:.1f} MB" for name, mb in self.traffic_mb.items())
        run = "on the NPU, without what runs on the CPU" if self.npu_alone else "a clip"
        return (
            f"{self.ms:.2f} ms {run} ({self.cycles:,} cycles at {self.clock_mhz:g} MHz), of which {self.moving_ms:.2f} "
            f"ms move data between layers; takes {memory}, moves {traffic} ({self.by}, {self.config}, "
            f"{self.system_config}, {self.memory_mode})"
        )


def compile_for_npu(
    model: Path, folder: Path, config: str, system_config: str, memory_mode: str, how: Compilation
) -> tuple[Estimate, Counter[str]]:
    """Write `model_vela.tflite`, `placement.json` and `estimate.json` into `folder`.

    Args:
        model: An int8 .tflite whose tensors are named by layer (`_tflite.finish`).
        folder: The artifact's.
        config: The accelerator, as `ethos-u85-256`.
        system_config: Vela's name.
        memory_mode: Vela's name.
        how: The time limit.

    Returns:
        The estimate, and which ops that only move data stay on the CPU.

    Raises:
        ToolchainError: Vela failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgeact-vela-") as work:
        command: list[str | Path] = [sys.executable, "-P", "-m", "ethosu.vela", "--accelerator-config", config]
        command += ["--config", "Arm/vela.ini", "--system-config", system_config, "--memory-mode", memory_mode]
        command += ["--output-dir", work, "--verbose-performance", model]
        said = run_compiler(command, name="Vela", how=how, in_a_line=_reason)
        rows = _read(Path(work), "*_per-layer.csv", said)
        (summary,) = _read(Path(work), "*_summary_*.csv", said)
        shutil.copyfile(Path(work) / f"{model.stem}_vela.tflite", folder / "model_vela.tflite")
    estimate = _estimate(summary, rows, config, system_config, memory_mode)
    ops, moved = _ops(rows, _refused(said), estimate.clock_mhz)
    crossing = _crossing_bytes(folder / "model_vela.tflite")
    write_placement(folder, Placement.of(ops, "estimated", crossing, moved.elements()))
    (folder / "estimate.json").write_text(json.dumps(asdict(estimate), indent=1) + "\n")
    return estimate, moved


def _read(folder: Path, pattern: str, said: str) -> list[dict[str, str]]:
    files = list(folder.glob(pattern))
    if len(files) != 1:
        last = said.strip().splitlines()[-1:] or ["it says nothing"]
        raise ToolchainError(f"Vela wrote no {pattern.strip('*_')}: no op of this network is for the NPU ({last[0]})")
    with files[0].open(newline="") as file:
        return list(csv.DictReader(file))


def _reason(said: str) -> str:
    """Its last line that names an error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "it says nothing")


def _refused(said: str) -> dict[str, str]:
    """Why an op is on the CPU, by the name of its result."""
    warning = r"^Warning \(supported operators\) operator: \S+, ofm: '(.*)'\nReason: (.*)$"
    return dict(re.findall(warning, said, re.MULTILINE))


def _estimate(
    summary: Mapping[str, str], rows: list[dict[str, str]], config: str, system_config: str, memory_mode: str
) -> Estimate:
    memories = {"sram": "SRAM", "dram": "DRAM", "off_chip_flash": "flash"}
    memory_kb = {name: float(summary[f"{key}_memory_used"]) for key, name in memories.items()}
    traffic_mb = {name: float(summary[f"{key}_total_bytes"]) / 1e6 for key, name in memories.items()}
    clock_mhz = float(summary["core_clock"]) / 1e6
    moving = (int(row["Op Cycles"]) for row in rows if row["Original Operator"] in _MOVEMENT and row["Target"] == "NPU")
    return Estimate(
        by=f"Vela {importlib.metadata.version('ethos-u-vela')}",
        config=config,
        system_config=system_config,
        memory_mode=memory_mode,
        ms=1e3 * float(summary["inference_time"]),
        moving_ms=sum(moving) / clock_mhz / 1e3,
        cycles=int(summary["cycles_total"]),
        clock_mhz=clock_mhz,
        memory_kb={name: kb for name, kb in memory_kb.items() if kb},
        traffic_mb={name: mb for name, mb in traffic_mb.items() if mb},
        macs=int(summary["nn_macs"]),
        npu_alone=any(row["Target"] == "CPU" for row in rows),
    )


def _crossing_bytes(path: Path) -> int:
    """What each part on the NPU is given and gives; its commands, weights and scratch memory, which lead, are none."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    graph, total = model.subgraphs[0], 0
    for op in graph.operators:
        if model.operatorCodes[op.opcodeIndex].customCode == b"ethos-u":
            for index in (*op.inputs[4:], *op.outputs):
                tensor = graph.tensors[index]
                total += math.prod(tensor.shape) * _BYTES[flatbuffer_utils.type_to_name(tensor.type)]
    return total


def _ops(
    rows: list[dict[str, str]], refused: Mapping[str, str], clock_mhz: float
) -> tuple[list[PlacedOp], Counter[str]]:
    """Of every op that computes, where it runs; and the movement that is left on the CPU."""
    ops, moving = [], []
    for row in rows:
        op, unit, name = row["Original Operator"], row["Target"], row["Name"]
        if op not in _MOVEMENT:
            placed = PlacedOp(
                name=name or op,
                kernel=op,
                unit=unit,
                layer=name.rpartition("/")[0] if "/" in name else None,
                fallback="" if unit == "NPU" else f"{op}: {refused.get(name, 'Vela leaves it to the CPU')}",
                ms=int(row["Op Cycles"]) / clock_mhz / 1e3 if unit == "NPU" else None,
            )
            ops.append(placed)
        elif unit == "CPU":
            moving.append(op)
    return ops, Counter(moving)
