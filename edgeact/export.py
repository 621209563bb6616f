"""From a network to a proven bundle, top to bottom.

    model (eval) ─► reference logits ─► torch.export ─► BN folded ─► [int8] ─► [lowered] ─► target.compile ─► parity
         fp32 rung                                 folded rung  quantized rung  lowered rung  artifact rung  ─► bundle

Shapes: the network maps float `clip_BCTHW -> logits_BK`; the artifact maps a uint8 `clip_BTHWC` with B=1 to the same.
"""

import copy
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeact._artifact import cost_of_floats, runner_of, time_beside_reference
from edgeact._capture import behind_uint8, check_network, eager, fold, lower_and_prove, round_weights_alone, run_program
from edgeact._golden import clips_of, golden_clips, reference_set, spread, write_report
from edgeact._layers import layers_in_words, rungs_in_words, worst_first
from edgeact._macs import macs_by_layer
from edgeact._quantized import Quantized, Source, allow_floats, quantize
from edgeact._records import (
    Job,
    bundle_name,
    data_notes,
    default_name,
    engine_notes,
    make_manifest,
    make_report,
)
from edgeact._vendor_compiler import Compilation
from edgeact._whitened import measure_whitening
from edgeact.bundle import (
    Bundle,
    create_bundle,
    open_bundle,
    write_described,
    write_golden,
    write_manifest,
    write_reference,
)
from edgeact.clip import ClipSpec
from edgeact.descriptor import Described
from edgeact.descriptor_parity import nearest_clip
from edgeact.environment import busy_note
from edgeact.errors import InputError
from edgeact.evaluate import MOTION, EvaluationSet, OnCorrupt, Outputs, balanced, run_model
from edgeact.latency import Latency
from edgeact.numerics import Numerics, ladder
from edgeact.parity import Gates, NotMeasured, Report
from edgeact.placement import Placement
from edgeact.quantize.options import Int8
from edgeact.runtime import sample_of
from edgeact.targets import Request, check_form, check_options, check_precision, get_target
from edgeact.whitening import Whitening

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

__all__ = ["export"]


def export(
    model: "nn.Module",
    *,
    target: str,
    spec: ClipSpec,
    precision: str = "fp32",
    form: str | None = None,
    options: Mapping[str, str] | None = None,
    data: str | os.PathLike[str] = MOTION,
    out: str | os.PathLike[str] = "bundles",
    name: str | None = None,
    labels: Sequence[str] | None = None,
    model_name: str | None = None,
    described: Described | None = None,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    gates: Gates | None = None,
    clips: int | None = None,
    int8: Int8 | None = None,
    compilation: Compilation | None = None,
    threads: int = 0,
    rounds: int = 30,
    on_corrupt: OnCorrupt = "error",
    progress: bool = False,
) -> Bundle:
    """Export `model` for `target`, prove it against itself in fp32, and write the bundle `out/name`.

    Args:
        model: Float `clip_BCTHW -> logits_BK`; it is put in eval mode on the CPU.
        target: One of `list_targets()`.
        spec: How a video becomes a clip.
        precision: One of the target's precisions.
        form: One of the target's forms of time; the first of them by default.
        options: Options of the target, such as `{"backend": "vulkan"}`.
        data: Labelled videos (see `edgeact.data`), of which the held-out part is used, or `motion`.
        out: Folder of bundles; a bundle of the same name is replaced once the new one is whole, and only by one that
            holds its gates: what falls short is kept beside it as `name-failed`.
        name: The bundle's name; `<model>-<target>-<precision>` by default, with options that are not defaults.
        labels: Class names in the order of the logits; those of `data`, sorted, by default.
        model_name: The network's name in the manifest; its class by default.
        described: What the outputs mean, of a model that ends in a descriptor; by default they are logits.
        facts: More facts for the manifest, such as those of the training.
        notes: Remarks for the report.
        gates: Limits to hold; `Gates.defaults(precision)` by default, or `Gates.for_descriptors`.
        clips: Most clips of the held-out part, even over the classes; by default all, or a sample where the artifact
            runs in an emulator.
        int8: How the int8 network is made; for that precision alone.
        compilation: The time limit of a vendor's compiler, and its SDK if it uses one: `edgeact.targets.Compilation`.
        threads: CPU threads of both sides of the latency comparison; 0 takes every core.
        rounds: Interleaved rounds of the latency comparison.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed.
        progress: Show bars on stderr.

    Returns:
        The bundle. Whether it held its gates stands in its name, `report.json` and `bundle.manifest["facts"]["held"]`.

    Raises:
        InputError: Anything that was asked cannot be done; nothing is left behind.
        ToolchainError: torch.export or the target's toolchain failed.
    """
    check_precision(target, precision)
    if int8 is not None and precision != "int8":
        raise InputError(f"options of int8 were given, and the precision is {precision}: leave them out")
    if described is not None and int8 is not None and int8.keep_float == "auto":
        raise InputError("keep_float 'auto' judges by classes, and the network ends in a descriptor: name layers")
    if rounds < 1:
        raise InputError(f"rounds is {rounds}: latency needs at least 1")
    gates = gates or (Gates.defaults(precision) if described is None else Gates.for_descriptors(precision))
    model_name = model_name or type(model).__name__
    options = check_options(target, options or {}, precision)
    get_target(target).require_toolchain()
    get_target(target).check_sdk(options, compilation.sdk if compilation else None)
    evaluation = EvaluationSet.open(
        os.fspath(data),
        spec,
        labels=tuple(labels) if labels is not None else None,
        clips=clips,
        on_corrupt=on_corrupt,
        progress=progress,
    )
    whole = len(evaluation.dataset.samples)
    if clips is None:
        notes = (*notes, *_sample(evaluation, target))
    source = None
    if precision == "int8":
        how: dict[str, Any] = {"on_corrupt": on_corrupt, "progress": progress}
        source = Source.open(int8 or Int8(), os.fspath(data), spec, gates, labels=evaluation.dataset.labels, **how)
    job = Job(
        name=bundle_name(name or default_name(model_name, target, precision, options)),
        model=model.cpu().float().eval(),
        model_name=model_name,
        target_name=target,
        target=get_target(target),
        asked=Request(precision, options, compilation or Compilation(progress=progress)),
        form=check_form(target, form),
        spec=spec,
        gates=gates,
        threads=threads or os.cpu_count() or 1,
        rounds=rounds,
        evaluation=evaluation,
        int8=source,
        described=described,
    )
    taken = len(evaluation.dataset.samples)
    compared = {"clips": taken} | ({"sampled_from": whole} if taken < whole else {})
    facts = dict(facts or {}) | {"data": {"name": Path(data).name, "synthetic": str(data) == MOTION, **compared}}
    with _torch_threads(job.threads), create_bundle(Path(out), job.name) as draft:
        report = _build(job, draft.folder, Path(out), facts=facts, notes=notes)
        draft.held = report.held
    return open_bundle(report.bundle)


def _sample(evaluation: EvaluationSet, target: str) -> list[str]:
    """Leave as many clips as the target's runner can be judged by here, and say so."""
    kind, whole = get_target(target), evaluation.dataset
    most = sample_of(kind.proxy or kind.runtime)
    if most is None or most >= len(whole.samples):
        return []
    evaluation.dataset = balanced(whole, max(most, len(whole.labels)))
    taken = len(evaluation.dataset.samples)
    return [f"a sample of {taken} of {len(whole.samples)} clips is compared: emulation is slow; --clips takes more"]


def _run_reference(job: Job) -> Outputs:
    """The full-precision model on the evaluation set: what everything after is compared with."""
    outputs = check_network(job.model, job.spec)
    if outputs != job.outputs:
        wanted = f"the data {job.outputs} classes" if job.described is None else f"the descriptor {job.outputs} numbers"
        raise InputError(f"the model has {outputs} outputs, {wanted}")
    if job.described is not None and (weights := len(job.described.examples.svm_bias)) != len(job.labels):
        raise InputError(f"the descriptor tells {weights} classes apart, the data has {len(job.labels)}")
    return run_model(eager(job.model, job.spec), job.evaluation)


def _build(job: Job, folder: Path, out: Path, *, facts: Mapping[str, Any], notes: Sequence[str]) -> Report:
    """The pipeline: every rung, the artifact, what is measured of it, and the bundle's files."""
    reference = _run_reference(job)
    shown = clips_of(job.evaluation, spread(reference.samples))
    clip = shown[0][1]
    network = folded = fold(job.model, job.spec, int8=job.int8 is not None)
    rungs = [("folded", run_model(eager(network, job.spec), shown).logits)]
    int8 = None
    if job.int8 is not None:
        int8 = quantize(network, job.int8, job.target.scheme)
        network, facts = int8.network, {**facts, "quantization": int8.facts}
        if job.asked.options.get("activations") == "float16":  # the rungs are of what the artifact computes
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
                network = round_weights_alone(copy.deepcopy(network))
        rungs.append(("quantized", run_model(eager(network, job.spec), shown).logits))
    program = lower_and_prove(behind_uint8(network, job.spec), job.form, clip)
    if job.form != "volumetric":
        rungs.append(("lowered", run_model(run_program(program), shown).logits))
    told = job.target.compile(program, folder, job.asked)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    runner = runner_of(job, folder, clip)
    artifact = NotMeasured(runner.missing) if runner.missing else run_model(runner, job.evaluation)
    numerics = _ladder(job, reference, rungs, artifact, [sample.id for sample, _ in shown])
    if int8 is not None:
        clips = worst_first([clip for _, clip in shown], rungs[0][1], rungs[1][1])
        where = layers_in_words(folded, network, runner, clips, job.spec)
        notes = (*int8.notes, rungs_in_words(numerics), *where, *notes)
    if int8 is not None and int8.asked:
        job = dataclasses.replace(job, gates=allow_floats(job.gates, runner.placement(), program, job.target.scheme))
        notes = (cost_of_floats(job, int8.whole, runner, clip), *notes)
    placement, macs = runner.placement(), macs_by_layer(folded)
    if isinstance(placement, Placement):
        placement = placement.with_macs(macs)
    latency = time_beside_reference(job, runner, folder, clip)
    busy = busy_note(timed=isinstance(latency, Latency))
    report = make_report(
        job,
        numerics=numerics,
        reference=reference,
        artifact=artifact,
        latency=latency,
        placement=placement,
        files={"files": files, "size_mb": sum((folder / file).stat().st_size for file in files) / 1e6},
        out=out,
        notes=(*told, *engine_notes(job, runner), *notes, *data_notes(job.evaluation), *busy),
        whitening=None if int8 is None else _whitening(job, folded, int8, reference),
    )
    write_golden(folder, golden_clips(reference, shown, job.labels))
    write_reference(folder, reference_set(reference, artifact))
    if job.described is not None:
        write_described(folder, job.described)
    write_report(report, folder, job.evaluation, facts.get("training", {}).get("curves", ()))
    write_manifest(folder, make_manifest(job, report, files, {**facts, "macs": macs}))
    return report


def _ladder(
    job: Job,
    reference: Outputs,
    rungs: list[tuple[str, NDArray[np.float32]]],
    artifact: Outputs | NotMeasured,
    shown: list[str],
) -> Numerics:
    """Every rung on the clips `shown`; reference and artifact ran all clips, these among them.

    Of descriptors, rungs agree on the nearest of these clips, and there is no truth.
    """
    row_of = {sample.id: row for row, sample in enumerate(reference.samples)}
    rows = [row_of[clip] for clip in shown]
    if not isinstance(artifact, NotMeasured):
        rungs = [*rungs, ("artifact", artifact.logits[rows])]
    rungs = [("fp32", reference.logits[rows]), *rungs]
    if job.described is None:
        return ladder(rungs, reference.truth[rows])
    return ladder(rungs, answers=nearest_clip(job.described.reading))


def _whitening(job: Job, folded: "GraphModule", int8: Quantized, reference: Outputs) -> Whitening | NotMeasured | None:
    """What whitening does for an output in int8; None of a network that classifies."""
    if job.described is None:
        return None
    if (kind := job.asked.options.get("activations", "int8")) != "int8":
        return NotMeasured(f"activations are {kind}: int8 rounds no output")
    if job.int8 is None or job.int8.clips is None or "observer" not in int8.facts:
        return NotMeasured("its ranges were trained, not calibrated")
    assert job.target.scheme is not None, "a target with int8 has a scheme"
    how = {"observer": int8.facts["observer"], "symmetric": job.target.scheme.symmetric}
    return measure_whitening(folded, int8.network, job.int8.clips, job.evaluation, reference, job.described, **how)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
