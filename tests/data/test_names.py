"""Names of rows stay below the folder of results, whoever gives them."""

import pickle
from pathlib import Path

import pytest

from bbdm.data.names import RowName

POSIX = ["/x", "../x", "a/../../x", "a\0b", "", ".", ".."]
WINDOWS = ["C:x", "C:\\x", "\\x", "\\\\host\\share\\x", "a\\..\\..\\x"]
HOSTILE = [*POSIX, *WINDOWS]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_that_leads_outside_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the name of a row must be a relative path"):
        RowName(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("sub/p1.nii.gz", "sub/p1"),
        ("a.b.PNG", "a.b"),
        ("p.01", "p.01"),
        ("./a.tif", "a"),
        ("a", "a"),
    ],
)
def test_a_file_is_named_without_the_suffix_of_its_format(path: str, name: str) -> None:
    assert RowName.of(path) == name


def test_a_name_travels_to_other_processes() -> None:
    copy = pickle.loads(pickle.dumps(RowName("a/b")))
    assert (type(copy), copy) == (RowName, "a/b")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (results / "sub").symlink_to(tmp_path / "elsewhere")
    assert RowName("other/a").below(results, "_0.png") == results / "other" / "a_0.png"
    with pytest.raises(ValueError, match=r"leads out of .*results by a link"):
        RowName("sub/a").below(results, ".png")
    (results / "a.png").symlink_to(tmp_path / "elsewhere" / "b.png")  # which is not there yet
    with pytest.raises(ValueError, match=r"leads out of .*results by a link"):
        RowName("a").below(results, ".png")
