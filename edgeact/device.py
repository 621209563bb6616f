"""A bundle measured on a device that ssh reaches.

bundle, clips, edgeact's source ──ssh──► ~/.cache/edgeact/device/…    only what is missing, compared by hash
                                         python -m edgeact._agent     measures, without torch
Results ◄──ssh── results.json                                         and the folder is removed

The device needs Python 3.10 or newer with numpy, PyAV and the bundle's runtime; edgeact is sent.
"""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeact._address import Address
from edgeact._delivery import bundle_items, data_items, deliver, source_items
from edgeact._progress import progress_bar
from edgeact._results_file import most_bytes
from edgeact._ssh import Connection, printable
from edgeact.bundle import Bundle, open_bundle
from edgeact.errors import BundleError, DeviceError, EdgeactError, InputError, ToolchainError, VideoError
from edgeact.evaluate import OnCorrupt
from edgeact.measure import check_lengths, evaluation_clips
from edgeact.parity import NOT_ASKED, NotMeasured
from edgeact.results import LEFT_OUT, Results, read_results
from edgeact.runtime import modules_of

__all__ = ["measure_on"]

_ALWAYS = ("numpy", "av")  # what measuring imports, beside the runtime
_KINDS = {kind.__name__: kind for kind in (InputError, BundleError, VideoError, ToolchainError)}


def measure_on(
    device: str,
    bundle: Bundle | str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    threads: int = 0,
    rounds: int = 30,
    minutes: float | None = None,
    on_corrupt: OnCorrupt = "error",
    python: str = "python3",
    ssh_config: str | os.PathLike[str] | None = None,
    keep: bool = False,
    progress: bool = False,
) -> Results:
    """Run a bundle on a device; `edgeact.validate(bundle, results=…)` judges what comes out.

    Args:
        device: `ssh://user@host` or `ssh://user@host:port`; the login must work without a password.
        bundle: A bundle or its folder.
        data: As in `edgeact.validate`; only the clips of the evaluation set are copied.
        threads: CPU threads there; 0 takes every core.
        rounds: Timed runs.
        minutes: Then run back to back for that long, with the device's sensors; None does not.
        on_corrupt: A video that cannot be used is an error, or is skipped and listed; what a device skips beyond a
            hundredth of the evaluation set falls short when it is judged.
        python: The Python there that has the bundle's runtime.
        ssh_config: Read in place of ~/.ssh/config.
        keep: Leave there what was copied; the next run copies only what changed.
        progress: Show bars on stderr.

    Raises:
        InputError: The bundle, the data or the device's Python cannot be used.
        DeviceError: The device cannot be reached, or failed.
        ToolchainError: The runtime failed there.
    """
    address = Address.parse(device)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    check_lengths(rounds, minutes)
    dataset = evaluation_clips(opened, data, progress=progress)
    items = {**bundle_items(opened), **source_items(), **(data_items(dataset) if dataset else {})}
    decoded_bytes = len(dataset.samples) * math.prod(opened.spec.clip_shape) if dataset else 0
    request: dict[str, Any] = {"bundle": "../bundle", "data": "../data" if dataset else None, "out": "../results.json"}
    request |= {"threads": threads, "rounds": rounds, "minutes": minutes, "on_corrupt": on_corrupt}
    with Connection(address, python=python, ssh_config=Path(ssh_config) if ssh_config else None) as connection:
        facts = _check_device(connection, opened, python)
        with _folder(connection, opened, keep) as (free, notes):
            deliver(connection, items, free=free, extra=decoded_bytes, progress=progress)
            _run(connection, request, progress)
            results = _fetch(connection, opened)
    if minutes is not None and results.sustained in (NOT_ASKED, LEFT_OUT):
        results = replace(
            results, sustained=NotMeasured(f"{address} sent none, and {minutes:g} minutes were asked for")
        )
    return replace(results, notes=(f"measured on {address}: {facts}", *results.notes, *notes))


def _check_device(connection: Connection, bundle: Bundle, python: str) -> str:
    """Whether what measuring needs can be imported there; the device in words."""
    proxy = bundle.manifest.get("proxy")
    runtimes = (*modules_of(bundle.runtime), *(modules_of(str(proxy)) if proxy else ()))
    found = connection.ask("probe", modules=[*_ALWAYS, *runtimes])
    modules: Any = found.get("modules")
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in (*_ALWAYS, *runtimes):
        entry = modules.get(name) if isinstance(modules, dict) else None
        if isinstance(entry, dict) and "version" in entry:
            versions[name] = printable(entry["version"])
        else:
            missing[name] = printable(entry["missing"]) if isinstance(entry, dict) and "missing" in entry else "no word"
    needed = [name for name in _ALWAYS if name in missing]
    needed += [] if any(name in versions for name in runtimes) else [runtimes[0]]
    if needed:
        raise InputError(
            f"{connection.address} cannot import {needed[0]} ({missing[needed[0]]}): run "
            f"`{python} -m pip install 'edgeact[{bundle.runtime}]'` there, or name another interpreter with --python"
        )
    system, there = printable(found.get("system")), printable(found.get("python"))
    return ", ".join([system, f"Python {there}", *(f"{name} {version}" for name, version in versions.items())])


@contextlib.contextmanager
def _folder(connection: Connection, bundle: Bundle, keep: bool) -> Iterator[tuple[int, list[str]]]:
    """The bundle's folder on the device, locked: how many bytes are free there, and notes that its end may add to.

    It is removed at the end, after an error too. A connection that ended leaves it, and the next run goes on from it.
    """
    name, notes = str(bundle.manifest["digest"])[:16], list[str]()
    place = connection.ask("open", name=name)
    folder, free = printable(place.get("folder")), place.get("free")
    try:
        yield free if isinstance(free, int) else 0, notes
    except BaseException as exc:
        if connection.lost:
            raise DeviceError(f"{exc}; run it again: the copy goes on from what is in {folder} there") from exc
        if not keep and (left := _remove(connection, name)):
            told = str(exc) or "interrupted"
            raise DeviceError(f"{told}; {folder} is left on {connection.address}: {left}") from exc
        raise
    if keep:
        notes.append(f"{folder} is kept on {connection.address}")
    elif left := _remove(connection, name):
        notes.append(f"{folder} is left on {connection.address}: {left}")


def _remove(connection: Connection, name: str) -> str | None:
    """Remove the folder, over another connection where this one waits for an answer; why that failed, if it did."""
    try:
        if connection.idle:
            connection.ask("remove")
            return None
        connection.close()  # the other end sees it, and stops what it does
        with connection.again() as another:
            another.ask("open", name=name)
            another.ask("remove")
    except EdgeactError as exc:
        return str(exc)
    return None


def _run(connection: Connection, request: dict[str, Any], progress: bool) -> None:
    """Run the agent and show its progress.

    Raises:
        EdgeactError: What the agent could not use, as the kind of error that it is here; or it failed.
    """
    error = None
    connection.tell("run", request=request)
    with contextlib.ExitStack() as bars:
        shown: tuple[str, int] | None = None
        while "ended" not in (answer := connection.answer()):
            error = answer.get("error", error)
            match answer.get("progress"):
                case [str(what), int(done), int(total)]:
                    what = re.sub(r"[^\w .,:%-]", " ", printable(what))  # rich would read [brackets]
                    if shown is None or what != shown[0] or done < shown[1]:
                        bars.close()
                        step, shown = bars.enter_context(progress_bar(what, total, progress)), (what, 0)
                    for _ in range(shown[1], min(done, total)):
                        step()
                    shown = (what, done)
    connection.idle = True
    match error:
        case [str(kind), str(message)]:
            raise _KINDS.get(kind, DeviceError)(f"on {connection.address}: {printable(message)}")
    if answer["ended"] != 0:
        raise DeviceError(
            f"the measurement on {connection.address} ended with status {printable(answer['ended'])}: "
            f"{printable(answer.get('said')) or 'it gave no reason (out of memory?)'}"
        )


def _fetch(connection: Connection, bundle: Bundle) -> Results:
    """results.json of the device, checked as one that came from anyone."""
    most = most_bytes(bundle)
    size = connection.ask("fetch", name="results.json", most=most).get("size")
    connection.idle = False  # the bytes follow
    if not isinstance(size, int) or not 0 <= size <= most:
        raise DeviceError(f"{connection.address} offers results of {printable(size)} bytes, at most {most} are taken")
    content = connection.receive(size)
    connection.idle = True
    with tempfile.TemporaryDirectory(prefix="edgeact-") as folder:
        file = Path(folder) / "results.json"
        file.write_bytes(content)
        try:
            return read_results(file, bundle)
        except InputError as exc:
            reason = str(exc).removeprefix(f"{file}: ")
            raise DeviceError(f"{connection.address} sent results that are refused: {reason}") from exc
