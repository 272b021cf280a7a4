"""Of experiments/acceptance/disk_faults.py what needs no mount: a folder that vanishes."""

import importlib.util

import pytest
from commands import ROOT


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_the_run_in_one_line_and_it_goes_on(tmp_path, monkeypatch):
    path = ROOT / "experiments" / "acceptance" / "disk_faults.py"
    spec = importlib.util.spec_from_file_location("disk_faults", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "UNPRIVILEGED", [])
    seen = script.vanished(script.Runs(tmp_path), tmp_path / "vanished")
    (line,) = seen["said"]
    assert line.startswith("llmasos: error: cannot write") and "the folder is gone" in line
    assert (seen["status"], seen["is_left_sound"], seen["went_on"]) == (3, True, 0)
    assert seen["left"] >= script.EVERY and len(seen["leaves"]) > 10
