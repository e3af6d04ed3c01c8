"""Folders bound to a configuration, and folders that are replaced whole."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from relaylab.files import CONFIG, bind_folder, replaced_folder


def test_a_folder_is_bound_to_its_configuration(tmp_path):
    folder = bind_folder(tmp_path / "run", {"seed": 0, "caps": (1, 2)})
    assert bind_folder(folder, {"seed": 0, "caps": [1, 2]}) == folder  # as JSON gives it back
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        bind_folder(folder, {"seed": 1, "caps": [1, 2]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="relaylab did not make it"):
        bind_folder(tmp_path / "mine", {"seed": 0})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_shards_that_begin_at_the_same_moment_share_a_folder(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        for k in range(30):
            folders = [tmp_path / str(k)] * 16
            assert set(pool.map(bind_folder, folders, [{"k": k}] * 16)) == {tmp_path / str(k)}
            assert json.loads((tmp_path / str(k) / CONFIG).read_text()) == {"k": k}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    out = tmp_path / "student"
    with replaced_folder(out, marker="training.json") as fresh:
        (fresh / "training.json").write_text("old")
    with pytest.raises(OSError, match="full"), replaced_folder(out, marker="training.json") as fresh:  # noqa: PT012
        (fresh / "training.json").write_text("new")
        raise OSError("the disk is full")
    assert (out / "training.json").read_text() == "old"
    with replaced_folder(out, marker="training.json") as fresh:
        (fresh / "training.json").write_text("new")
    assert (out / "training.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    with pytest.raises(ValueError, match="did not make it"), replaced_folder(tmp_path, marker="training.json"):
        pass
