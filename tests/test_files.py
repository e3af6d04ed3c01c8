"""Folders bound to a configuration, and folders that are replaced whole."""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from relaylab.files import (
    CONFIG,
    LineWriter,
    bind_folder,
    check_config,
    read_lines,
    replaced_folder,
    shard_files,
    shard_path,
    write_whole,
)


def test_a_folder_is_bound_to_its_configuration(tmp_path):
    folder = bind_folder(tmp_path / "run", {"seed": 0, "caps": (1, 2)})
    assert bind_folder(folder, {"seed": 0, "caps": [1, 2]}) == folder  # as JSON gives it back
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        bind_folder(folder, {"seed": 1, "caps": [1, 2]})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"mine is not empty and holds no config\.json of this command"):
        bind_folder(tmp_path / "mine", {"seed": 0})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("foreign", ["[1]", '"text"', "null"])
def test_a_configuration_that_is_no_object_is_something_else(tmp_path, foreign):
    (tmp_path / "config.json").write_text(foreign)
    with pytest.raises(ValueError, match=r"holds something else than this command makes; nothing was changed"):
        bind_folder(tmp_path, {"seed": 0})
    assert (tmp_path / "config.json").read_text() == foreign


def test_a_configuration_of_something_else_and_long_values_are_told_shortly():
    run = {"seed": 0, "beta": 0.1, "reward": "a", "max_steps": 3}
    with pytest.raises(ValueError, match=r"^runs/a holds something else than this command makes; nothing was changed"):
        check_config("runs/a", {"seed": 0, "methods": ["relay"], "problems": "3f"}, run)
    with pytest.raises(ValueError, match="configuration: lora was null, is 8; seed was 0, is 1; nothing was changed"):
        check_config("runs/a", run, run | {"seed": 1, "lora": 8})
    before, now = ([f"a long question {i}" for i in range(n)] for n in (400, 800))
    with pytest.raises(ValueError, match=r"\.\.\. \(400 entries\), is .*\.\.\. \(800 entries\); nothing"):
        check_config("runs/a", run | {"problems": before}, run | {"problems": now})


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


def test_a_full_disk_leaves_the_old_file_whole_and_names_it(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_whole(path, "new")
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("old", ["a.json"])
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OSError, match=r"No space left on device: '.*out'"), replaced_folder(out, marker="m") as fresh:
        (fresh / "weights").write_text("new")
    assert (list(out.iterdir()), sorted(p.name for p in tmp_path.iterdir())) == ([], ["a.json", "out"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_line_that_does_not_fit_is_no_line_and_the_next_writer_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    with LineWriter(path) as out:
        out.write_line('{"a": 1}')
    writer = LineWriter(path)
    writer._file.close()
    writer._file = open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.jsonl'"), writer:
        writer.write_line('{"a": 2}')
    path.write_bytes(path.read_bytes() + b'{"a": ')  # what a disk takes before it is full
    with LineWriter(path) as out:  # the lock is free again
        out.write_line('{"a": 3}')
    assert [line["a"] for line in read_lines(path)] == [1, 3]


@pytest.mark.skipif(os.name != "posix", reason="Windows opens no folders")
def test_the_names_of_a_folder_are_flushed_after_the_content(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    write_whole(tmp_path / "a", "new")
    assert flushed == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]
    flushed.clear()
    with replaced_folder(tmp_path / "out", marker="m") as folder:
        (folder / "m").touch()
    assert flushed == [(tmp_path / "out" / "m").stat().st_ino, tmp_path.stat().st_ino]


def test_the_shards_of_a_file_are_its_own(tmp_path):
    for name in ("t.jsonl", "t.big.jsonl"):
        for part in ("1/2", "2/2"):
            shard_path(tmp_path / name, part).write_text("{}\n")
    assert [p.name for p in shard_files(tmp_path / "t.jsonl")] == ["t.1-of-2.jsonl", "t.2-of-2.jsonl"]
    assert len(shard_files(tmp_path / "t.big.jsonl")) == 2


def test_a_compressed_file_is_read_and_never_appended_to(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    with pytest.raises(ValueError, match=r"t\.jsonl\.gz: .* leave out \.gz"):
        LineWriter(path)
    data = gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(9999)))
    path.write_bytes(data)
    assert sum(1 for _ in read_lines(path)) == 9999
    flipped = bytearray(data)
    flipped[200] ^= 255
    for broken in (data[: len(data) // 2], flipped):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"t\.jsonl\.gz is no whole gzip file"):
            list(read_lines(path))


@pytest.mark.skipif(os.name != "posix", reason="rights are those of POSIX")
def test_a_new_file_has_the_rights_of_the_user_and_an_old_one_keeps_its_own(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "points.csv", "ada,6")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "points.csv").stat().st_mode) == 0o600
    for rights in (0o640, 0o600):
        (tmp_path / "points.csv").chmod(rights)
        write_whole(tmp_path / "points.csv", "bob,5")
        assert stat.S_IMODE((tmp_path / "points.csv").stat().st_mode) == rights
    assert [p.name for p in tmp_path.iterdir()] == ["points.csv"]
