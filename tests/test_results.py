"""results.json is a public contract: what is written is read back, and everything wrong with one is refused."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from results_samples import IDS, LABELS, logits, results_fields, without, write_bundle, write_fields

from edgeact import _results_file
from edgeact.bundle import Bundle
from edgeact.diff import diff
from edgeact.errors import InputError
from edgeact.parity import NotMeasured
from edgeact.results import EvaluationOutputs, FrameDifference, Results, read_results, write_results
from edgeact.sustained import Window

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path)


def refused(bundle: Bundle, file: Path, content: Any) -> str:
    """The one line that refuses this content, without the file's name before it."""
    with pytest.raises(InputError) as caught:
        read_results(write_fields(file, content), bundle)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert len(message) < 900
    return message


def test_the_schema_is_one_and_documents_every_field() -> None:
    schema = json.loads(resources.files("edgeact").joinpath("results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == {"schema", "bundle", *(f.name for f in dataclasses.fields(Results))} - {
        "bundle_name",
        "bundle_digest",
    }
    assert all("description" in field for field in schema["properties"].values())


def test_what_is_written_is_read_back(bundle: Bundle, tmp_path: Path) -> None:
    read = read_results(write_fields(tmp_path / "a.json", results_fields(bundle)), bundle)
    assert isinstance(read.evaluation, EvaluationOutputs)
    np.testing.assert_array_equal(read.evaluation.logits, logits())
    assert (read.created, read.latency_ms) == ("2026-11-22T09:00:00+00:00", (11, 12.5, 13.0))
    write_results(read, tmp_path / "b.json")
    again = read_results(tmp_path / "b.json", bundle)
    assert again.to_dict() == read.to_dict()
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["a.json", "b.json"]
    schema = json.loads(resources.files("edgeact").joinpath("results.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "b.json").read_text()), schema)


def test_a_small_program_writes_six_fields(bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    small = {name: fields[name] for name in ("schema", "bundle", "created", "runtime", "device", "golden")}
    small["runtime"], small["device"] = {"name": "r", "version": "1"}, {"name": "d"}
    small["golden"] = [without(clip, "frames") for clip in small["golden"]]
    read = read_results(write_fields(tmp_path / "a.json", small), bundle)
    left_out = NotMeasured("the results leave it out")
    assert (read.evaluation, read.latency_ms, read.placement, read.sustained) == (left_out,) * 4
    assert (read.runtime.threads, read.device.facts, read.golden[0].frames, read.notes) == (None, {}, None, ())


def test_what_was_not_measured_has_a_reason(bundle: Bundle, tmp_path: Path) -> None:
    why = {"not_measured": "no time"}
    fields = results_fields(bundle) | dict.fromkeys(("evaluation", "latency_ms", "placement", "sustained"), why)
    fields["golden"] = [
        {**clip, "logits": why, "frames": {"error": "no decoder"}} for clip in results_fields(bundle)["golden"]
    ]
    read = read_results(write_fields(tmp_path / "a.json", fields))
    reason = NotMeasured("no time")
    assert (read.evaluation, read.latency_ms, read.placement, read.sustained) == (reason,) * 4
    assert (read.golden[0].logits, read.golden[0].frames) == (reason, FrameDifference(error="no decoder"))
    assert read.to_dict()["golden"] == fields["golden"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no results.json: Expecting value"),
        ("[" * 100_000, "is no results.json: "),
        ("[]", "at $: [] is not of type 'object'"),
        ('{"schema": NaN}', "it holds NaN, and every number must be finite"),
        ('{"schema": [-Infinity]}', "it holds -Infinity, and every number must be finite"),
        ('{"schema": 1e999}', "it holds 1e999, and every number must be finite"),
        ('{"schema": ' + "9" * 6000 + "}", "it holds 9999"),
    ],
)
def test_files_that_are_no_results(content: str, message: str, bundle: Bundle, tmp_path: Path) -> None:
    assert message in refused(bundle, tmp_path / "r.json", content)


def test_bytes_that_are_no_text(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"r\.json is no results\.json: 'utf-8' codec"):
        read_results(tmp_path / "r.json", bundle)


def test_results_that_are_not_there(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json is not there: give the results\.json that a program wrote"):
        read_results(tmp_path / "no.json", bundle)
    with pytest.raises(InputError, match="is a folder: give the results"):
        read_results(tmp_path, bundle)
    with pytest.raises(InputError, match="is not there: give the results"):
        read_results(tmp_path / "a\0b", bundle)


def test_results_that_are_no_regular_file(bundle: Bundle, tmp_path: Path) -> None:
    pipe, loop, broken, device = (tmp_path / name for name in ("pipe", "loop", "broken", "device"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    broken.symlink_to(tmp_path / "absent")
    device.symlink_to("/dev/zero")
    for file, what in (
        (pipe, "a pipe, not a regular file"),
        (loop, "not a file that can be opened (Too many levels of symbolic links)"),
        (broken, "a link to nothing"),
        (device, "a device or a socket, not a regular file"),
    ):
        with pytest.raises(InputError, match=re.escape(f"results {file} is {what}: give the results.json")):
            read_results(file, bundle)
        with pytest.raises(InputError, match=re.escape(what)):
            diff(bundle, file)


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc00\ud83d"])
def test_text_that_cannot_be_written(text: str, bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    words = "which is half of a character (a lone surrogate)"
    for changed in ({"notes": [text]}, {"device": {"name": "d", "facts": {text: "x"}}}, {text: 1}):
        assert words in refused(bundle, tmp_path / "r.json", fields | changed)
    fields["notes"] = ["\N{GRINNING FACE}, in JSON two surrogates", "\\ud800 is text"]
    assert read_results(write_fields(tmp_path / "r.json", fields), bundle).notes == tuple(fields["notes"])


def test_a_file_larger_than_any_results(bundle: Bundle, tmp_path: Path) -> None:
    for given in (bundle, None):
        with (tmp_path / "r.json").open("wb") as file:
            file.truncate(_results_file.most_bytes(given) + 1)
        with pytest.raises(InputError, match=r"has \d+ bytes: results of this bundle take at most \d+"):
            read_results(tmp_path / "r.json", given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(schema=2), "at $.schema: 1 was expected (The version of this format.)"),
        (lambda f: f.pop("golden"), "at $: 'golden' is a required property"),
        (lambda f: f.update(latency=[1]), "at $: Additional properties are not allowed ('latency' was unexpected)"),
        (
            lambda f: f["bundle"].pop("digest"),
            "at $.bundle: 'digest' is a required property (The bundle that was run.)",
        ),
        (lambda f: f.update(created="today"), "at $.created: 'today' does not match"),
        (
            lambda f: f.update(created="2026-13-01T00:00:00Z"),
            "created is '2026-13-01T00:00:00+00:00': month must be in 1..12",
        ),
        (lambda f: f.update(created="2026-02-30T00:00:00Z"), "created is '2026-02-30T00:00:00+00:00': day is out of"),
        (lambda f: f.update(created="2026-02-28T25:00:00Z"), "created is '2026-02-28T25:00:00+00:00': hour must be"),
        (lambda f: f.update(created="9999-12-31T00:00:00Z"), "its year must be in 1970..2099"),
        (lambda f: f.update(created="0001-01-01T00:00:00Z"), "its year must be in 1970..2099"),
        (lambda f: f.update(created="2026-11-22T09:00:00+99:99"), "created is '2026-11-22T09:00:00+99:99': "),
        (lambda f: f.update(created="2026-11-22T09:00:00+01:60"), "the minutes of its offset must be in 0..59"),
        (
            lambda f: f["runtime"].update(threads=0),
            "at $.runtime.threads: 0 is less than the minimum of 1 (CPU threads",
        ),
        (lambda f: f["runtime"].update(threads=True), "at $.runtime.threads: True is not of type 'integer', 'null'"),
        (lambda f: f["device"]["facts"].update(watts=15), "at $.device.facts.watts: 15 is not of type 'string'"),
        (lambda f: f.update(golden=[]), "at $.golden: [] should be non-empty (The golden clips of the bundle, every"),
        (lambda f: f["golden"][1].pop("logits"), "at $.golden[1]: 'logits' is a required property"),
        (lambda f: f["golden"][1].update(logits=[1, "2"]), "at $.golden[1].logits[1]: '2' is not of type 'number'"),
        (lambda f: f["golden"][1].update(logits=[1, True]), "at $.golden[1].logits[1]: True is not of type 'number'"),
        (lambda f: f["golden"][1].update(logits={}), "at $.golden[1].logits: 'not_measured' is a required property"),
        (
            lambda f: f["golden"][0].update(frames={"mean_levels": 1}),
            "at $.golden[0].frames: 'max_levels' is a required",
        ),
        (lambda f: f["golden"][0]["frames"].update(error="x"), "at $.golden[0].frames: "),
        (lambda f: f.update(evaluation="x" * 9999), "x … "),
        (lambda f: f["evaluation"][0].update(sha256="0"), "at $.evaluation[0].sha256: '0' does not match"),
        (lambda f: f.update(latency_ms=[]), "at $.latency_ms: [] should be non-empty"),
        (lambda f: f.update(latency_ms=[1, 0]), "at $.latency_ms[1]: 0 is less than or equal to the minimum of 0"),
        (lambda f: f.update(latency_ms=[-1.5]), "at $.latency_ms[0]: -1.5 is less than or equal to the minimum of 0"),
        (lambda f: f.update(latency_ms=[1e308]), "at $.latency_ms[0]: 1e+308 is greater than the maximum of 86400000"),
        (lambda f: f.update(peak_memory_mb=1e300), "at $.peak_memory_mb: 1e+300 is greater than the maximum of"),
        (
            lambda f: f["placement"].update(accelerated_ops=1e300),
            "at $.placement.accelerated_ops: 1e+300 is greater than the maximum of 1000000000",
        ),
        (lambda f: f["placement"]["kernels"].update(conv=2e9), "at $.placement.kernels.conv: 2000000000.0 is greater"),
        (lambda f: f["sustained"].update(minutes=1e9), "at $.sustained.minutes: 1000000000.0 is greater than the"),
        (lambda f: f["sustained"]["windows"][0].update(clips=0), "windows[0].clips: 0 is less than the minimum of 1"),
        (lambda f: f["sustained"]["windows"][0].update(p99_ms=1e308), "windows[0].p99_ms: 1e+308 is greater than the"),
        (lambda f: f["sustained"]["windows"][0].update(temperature_c=1e5), "windows[0].temperature_c: 100000.0 is"),
        (
            lambda f: f["sustained"]["windows"][0].update(p99_ms=9.4),
            "window 0 of sustained has the percentiles 9, 9.5, 9.4 ms: p50 <= p95 <= p99",
        ),
        (lambda f: f["sustained"]["windows"][0].update(p50_ms=9.6), "the percentiles 9.6, 9.5, 10 ms: p50 <= p95"),
        (lambda f: f.update(peak_memory_mb=-1), "at $.peak_memory_mb: -1 is less than or equal to the minimum of 0"),
        (lambda f: f["placement"].update(kind="sure"), "at $.placement.kind: 'sure' is not one of ['measured', "),
        (lambda f: f["placement"].update(not_measured="x"), "at $.placement: "),
        (lambda f: f["placement"].update(fallback=["a", "b"]), "placement names 2 ops that fall back and counts 1"),
        (
            lambda f: f["placement"]["kernels"].update(conv=1.5),
            "at $.placement.kernels.conv: 1.5 is not of type 'integer'",
        ),
        (lambda f: f["sustained"].update(windows=[]), "at $.sustained.windows: [] should be non-empty"),
        (lambda f: f["sustained"]["windows"][0].pop("p95_ms"), "at $.sustained.windows[0]: 'p95_ms' is a required"),
        (lambda f: f.update(notes=[["x"] * 99] * 99), "is not of type 'string'"),
        (lambda f: f["device"].update(facts={"\n" + "x" * 9999: 5}), "x']: 5 is not of type 'string'"),
    ],
)
def test_what_the_schema_refuses(change: Change, message: str, bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    change(fields)
    assert message in refused(bundle, tmp_path / "r.json", fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["bundle"].update(digest="0" * 64),
            "it is of the bundle 'small' with the digest '000000000000', not",
        ),
        (lambda f: f["golden"].pop(), "golden lacks 1 of the 2 clips of golden.json, first 'still/3.mp4'"),
        (lambda f: f["golden"][1].update(id=IDS[0]), "golden holds the clip 'left/0.mp4' 2 times"),
        (lambda f: f["golden"][1].update(id="x"), "golden holds 1 clips that the bundle does not, first 'x'"),
        (
            lambda f: f["golden"][1].update(logits=[1, 2]),
            "golden clip 'still/3.mp4' has 2 logits, not one for each of the 3",
        ),
        (
            lambda f: f["golden"][1].update(logits=[1, 2, 1e39]),
            "golden clip 'still/3.mp4' holds logits beyond what float32",
        ),
        (lambda f: f["evaluation"].append(f["evaluation"][0]), "evaluation holds the clip 'left/0.mp4' 2 times"),
        (lambda f: f["evaluation"][0].update(id="x"), "evaluation holds 1 clips that the bundle does not, first 'x'"),
        (lambda f: f["evaluation"][0].update(logits=[1, 2]), "evaluation holds logits of 2 and of 3 classes"),
        (
            lambda f: [row.update(logits=[1]) for row in f["evaluation"]],
            "evaluation has 1 logits, not one for each of the 3",
        ),
        (
            lambda f: f["evaluation"][0]["logits"].__setitem__(0, -1e39),
            "evaluation holds logits beyond what float32 can",
        ),
        (
            lambda f: f.update(evaluation=f["evaluation"][:9], skipped=[f"{IDS[9]}: no video"]),
            "evaluation covers 9 of the 12 clips of the bundle's evaluation set, and 2 of the others are not "
            "in skipped, first 'still/2.mp4': run every clip",
        ),
        (
            lambda f: f.update(skipped=[f"{clip}: cut short" for clip in IDS[:2]]),
            "evaluation holds 2 clips that skipped lists too, first 'left/0.mp4'",
        ),
        (
            lambda f: f["golden"][1].update(logits={"not_measured": "no time"}),
            "golden clip 'still/3.mp4' has no logits (no time), as 1 of the 2 golden clips: results are judged by",
        ),
    ],
)
def test_results_of_something_else(change: Change, message: str, bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    change(fields)
    assert message in refused(bundle, tmp_path / "r.json", fields)


def test_skipped_lines_name_clips(bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    fields["evaluation"] = fields["evaluation"][4:]
    lines = [
        "left/0.mp4: cut short",
        "/data: old/left/1.mp4: no video",
        r"C:\videos\left\2.mp4: no video",
        "left/3.mp4",
    ]
    file = tmp_path / "r.json"
    assert read_results(write_fields(file, fields | {"skipped": lines}), bundle).skipped == tuple(lines)
    for other in ("3.mp4: no video", "more/left/33.mp4: no video", "noleft/3.mp4: no video", "it is left/3.mp4"):
        message = refused(bundle, file, fields | {"skipped": [*lines[:3], other]})
        assert "1 of the others are not in skipped, first 'left/3.mp4'" in message


def test_a_line_that_could_mean_two_clips_means_the_one_that_was_not_run(tmp_path: Path) -> None:
    ids = ("1.mp4", "b/1.mp4", *IDS[:10])
    bundle = write_bundle(tmp_path, "two", ids=ids)
    fields = results_fields(bundle)
    golden, evaluation = fields["golden"], fields["evaluation"]
    for i in (0, 1):  # the folder of the videos may be called b
        fields |= {"golden": golden, "evaluation": evaluation[:i] + evaluation[i + 1 :]}
        read_results(write_fields(tmp_path / "r.json", fields | {"skipped": ["/b/1.mp4: cut short"]}), bundle)
    fields["evaluation"] = evaluation
    message = refused(bundle, tmp_path / "r.json", fields | {"skipped": ["/b/1.mp4: cut short"]})
    assert "evaluation holds 2 clips that skipped lists too, first '1.mp4'" in message


@pytest.mark.parametrize(
    ("created", "read"),
    [
        ("2026-11-22T09:00:00Z", "2026-11-22T09:00:00+00:00"),
        ("2026-11-22T09:00:00.1234567+05:30", "2026-11-22T09:00:00.1234567+05:30"),
        ("1970-01-01T00:00:03-11:00", "1970-01-01T00:00:03-11:00"),
        ("2026-11-22T09:00:00Z\n", "2026-11-22T09:00:00+00:00"),
    ],
)
def test_dates(created: str, read: str, bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle) | {"created": created}
    assert read_results(write_fields(tmp_path / "r.json", fields), bundle).created == read


def test_the_schema_says_what_a_window_holds() -> None:
    schema = json.loads(resources.files("edgeact").joinpath("results.schema.json").read_text())
    window = schema["properties"]["sustained"]["else"]["properties"]["windows"]["items"]["properties"]
    assert set(window) == {field.name for field in dataclasses.fields(Window)}
    words = {name: field["description"].split()[0] for name, field in window.items()}
    assert (words["temperature_c"], words["clock_mhz"], words["power_w"]) == ("Highest", "Mean", "Mean")


def test_results_without_their_bundle(bundle: Bundle, tmp_path: Path) -> None:
    fields = results_fields(bundle)
    fields["bundle"]["digest"] = "another"
    assert read_results(write_fields(tmp_path / "r.json", fields)).bundle_digest == "another"
    assert bundle.labels == LABELS


def test_results_that_cannot_be_written_leave_nothing(bundle: Bundle, tmp_path: Path) -> None:
    read = read_results(write_fields(tmp_path / "a.json", results_fields(bundle)), bundle)
    with pytest.raises(FileNotFoundError, match=re.escape("absent")):
        write_results(read, tmp_path / "absent" / "r.json")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_results(dataclasses.replace(read, peak_memory_mb=float("nan")), tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_millions_of_numbers_are_read_in_seconds(tmp_path: Path) -> None:
    row = [0.123456789] * 400
    golden = [{"id": str(i), "logits": row} for i in range(500)]
    fields = {"schema": 1, "bundle": {"name": "b", "digest": "d"}, "created": "2026-11-22T09:00:00Z", "golden": golden}
    fields |= {"runtime": {"name": "r", "version": "1"}, "device": {"name": "d"}}
    assert len(read_results(write_fields(tmp_path / "r.json", fields)).golden) == 500
