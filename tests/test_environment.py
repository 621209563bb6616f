import importlib.metadata
import os

import pytest

from edgeact.environment import busy_note, cpu_name, describe_environment, today


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.4, 0.0, 0.0))
    assert busy_note() == ()
    monkeypatch.setattr(os, "getloadavg", lambda: (4.2, 0.0, 0.0))
    assert busy_note() == ("the machine was busy (load 4.2 on 2 cores): its latencies are disturbed",)
    assert busy_note(timed=False) == (), "nothing was timed"


def test_facts_are_text() -> None:
    facts = describe_environment()
    assert facts["cpu"] == cpu_name() != ""
    assert facts["torch"].startswith("2.13.0")
    assert facts["ethos-u-vela"] == importlib.metadata.version("ethos-u-vela")
    assert all(isinstance(value, str) for value in facts.values())
    assert today().endswith("+00:00")
