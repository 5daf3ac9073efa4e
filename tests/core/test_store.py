"""The store: whole files or none, within its root, told in words when the system refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.errors import EnvironmentFault, StoreError
from mgk_core.contract.files import check_header, read_json, read_metadata, read_tensors
from mgk_core.contract.json_numbers import finite, numbers
from mgk_core.record.disk import Disk, environment_told
from mgk_core.record.store import Store, json_text


@pytest.fixture
def store(tmp_path):
    """A store in an empty directory."""
    return Store(tmp_path)


def test_a_failed_write_leaves_what_was_there(store):
    """An error while a file is made keeps the old one, and no temporary file."""
    store.write_text("a/b.txt", "old")

    def fail(path):
        path.write_text("half")
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        store.write("a/b.txt", fail)
    with pytest.raises(RuntimeError, match="planted"):
        store.write_folder("a", lambda where: fail(where / "b.txt"))
    assert (store.root / "a/b.txt").read_text() == "old"
    assert [p.name for p in store.root.rglob("*")] == ["a", "b.txt"]


def test_a_folder_is_replaced_whole(store):
    """What the old folder held and the new one does not is gone."""
    store.write_folder("f", lambda where: (where / "one").write_text("1"))
    store.write_folder("f", lambda where: (where / "two").write_text("2"))
    assert [p.name for p in (store.root / "f").iterdir()] == ["two"]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "link/out"])
def test_nothing_is_written_outside_the_root(store, tmp_path_factory, name):
    """Names with '..', absolute names and links that lead out are refused."""
    outside = tmp_path_factory.mktemp("outside")
    (store.root / "link").symlink_to(outside)
    for write in (store.write_text, store.append):
        with pytest.raises(StoreError, match="would leave the run directory"):
            write(name, "x")
    with pytest.raises(StoreError, match="would leave"):
        store.remove(name)
    assert list(outside.iterdir()) == []


def test_a_link_under_a_temporary_name_is_not_followed(store, tmp_path_factory):
    """What someone put in the way is removed, not written through."""
    victim = tmp_path_factory.mktemp("victim") / "file"
    for target in ("exists", "dangling"):
        if target == "exists":
            victim.write_text("precious")
        (store.root / ".tmp-x.txt").symlink_to(victim)
        store.write_text("x.txt", "new")
        assert not victim.exists() or victim.read_text() == "precious"
        victim.unlink(missing_ok=True)
    (store.root / ".tmp-dangling").symlink_to(victim)
    assert store.sweep() == [".tmp-dangling"]
    assert not os.path.lexists(store.root / ".tmp-dangling")


def test_a_file_has_the_mode_of_any_other(store, tmp_path):
    """Tensors are as readable for others as text is."""
    (tmp_path / "plain").write_text("")
    store.write_tensors("t.safetensors", {"a": torch.ones(2)})
    modes = {
        stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("plain", "t.safetensors")
    }
    assert len(modes) == 1


def test_tensors_come_back_bit_for_bit(store):
    """Views, shared storage, empty and bf16 tensors, NaN included."""
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "t": whole.t(),
        "row": whole[1],
        "empty": torch.empty(0, 3),
        "n": torch.tensor(math.nan),
    }
    tensors["bf16"] = whole.to(torch.bfloat16)
    store.write_tensors("t.safetensors", tensors, {"key": "값"})
    found = read_tensors(store.root / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) for k, v in tensors.items() if k != "n")
    assert torch.isnan(found["n"])
    assert read_metadata(store.root / "t.safetensors") == {"key": "값"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        (2**62).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        b"\2" + b"\0" * 7 + b"[]",
    ],
)
def test_a_safetensors_header_is_checked_before_anything_is_allocated(tmp_path, data):
    """Too short, a length beyond the file or beyond sense, another kind: a sentence that names the file."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    for read in (read_tensors, read_metadata):
        with pytest.raises(
            StoreError, match=r"x\.safetensors: cannot be read as safetensors"
        ):
            read(path)


def test_a_huge_header_is_refused_by_its_length_alone(tmp_path):
    """A sparse file of 200 MiB that says its header is 100 MiB long is not read."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((100 * 2**20).to_bytes(8, "little"))
        file.truncate(200 * 2**20)
    with pytest.raises(StoreError, match="a header at most"):
        check_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "is damaged"), (b"[" * 200_000, "is damaged"), (b"\xff", "is damaged")],
)
def test_damaged_json_is_named(tmp_path, content, said):
    """Cut short, nested without end, no UTF-8."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(StoreError, match=said):
        read_json(tmp_path / "x.json")


def test_a_huge_or_foreign_json_is_not_read(tmp_path):
    """More bytes than any such file has, a folder, nothing at all."""
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**30)
    for name, said in (
        ("x.json", "expected at most"),
        (".", "not a file"),
        ("none", "no such file"),
    ):
        with pytest.raises(StoreError, match=said):
            read_json(tmp_path / name)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_json_holds_any_number(value):
    """What is not finite is written as a string that float() reads; everything else comes back equal."""
    found = json.loads(json_text(value))
    assert found == finite(value)
    if isinstance(value, float):
        back = float(found)
        assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO, errno.ENOTDIR]
)
def test_what_the_system_refuses_is_told(tmp_path, number):
    """The file, the reason and the mend, whatever the reason."""

    class Refusing(Disk):
        def rename(self, old, new):
            raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError) as error:
        Store(tmp_path, Refusing()).write_text("x", "y")
    assert str(error.value).startswith(
        f"{tmp_path / 'x'}: cannot be written: {os.strerror(number)}; "
    )
    assert "mgk resume" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_machine_refuses_is_its_fault():
    """A missing file is no fault of the environment; a full disk is, wherever it shows."""
    with pytest.raises(EnvironmentFault, match="free some space"), environment_told():
        raise OSError(errno.ENOSPC, "No space left on device", "file")
    with pytest.raises(FileNotFoundError), environment_told():
        raise FileNotFoundError(errno.ENOENT, "gone")


@given(
    st.recursive(
        st.floats() | st.integers(-5, 5) | st.booleans() | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["nan", "inf", "-inf", "a"]),
)
def test_a_table_reads_back_with_its_numbers_and_its_names(values, name):
    """Numbers that JSON has no word for are numbers again; a probe that is called like one keeps its name."""
    back = numbers(json.loads(json_text({"name": name, "values": values})))
    assert back["name"] == name
    assert repr(back["values"]) == repr(values)
