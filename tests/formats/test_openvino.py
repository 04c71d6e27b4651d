"""OpenVINO IR metadata is read without openvino, and hostile XML is refused in one line."""

from pathlib import Path

import pytest

from stlm_edge.errors import UsageError
from stlm_edge.formats.openvino import check_files, read_metadata

SECTION = """<stlm_edge>
\t\t\t<rule value="S×S &lt; 3" />
\t\t\t<threshold value="0.5" />
\t\t</stlm_edge>"""


def write_ir(folder: Path, section: str = SECTION, before: str = '<?xml version="1.0"?>\n') -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(b"\0" * 8)
    layers = '<layers><layer id="0" name="stlm_edge"/></layers>'
    text = f'{before}<net name="stlm">{layers}<rt_info>\n\t\t{section}\n\t</rt_info></net>\n'
    (folder / "model.xml").write_bytes(text.encode())
    return folder


def test_entries_are_read(tmp_path: Path) -> None:
    entries = read_metadata(write_ir(tmp_path / "model.openvino"))
    assert entries == {"stlm_edge.rule": "S×S < 3", "stlm_edge.threshold": "0.5"}


@pytest.mark.parametrize("section", ["", "<stlm_edge />", "<other><threshold value='1' /></other>"])
def test_ir_without_our_metadata_has_no_entries(section: str, tmp_path: Path) -> None:
    assert read_metadata(write_ir(tmp_path / "model.openvino", section)) == {}


BOMB = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'
OUTSIDE = '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n'


@pytest.mark.parametrize(
    ("section", "before", "reason"),
    [
        (SECTION, BOMB, "DOCTYPE"),
        ('<stlm_edge><threshold value="&a;" /></stlm_edge>', OUTSIDE, "DOCTYPE"),
        ('<stlm_edge><threshold value="&a;" /></stlm_edge>', "", "undefined entity"),
        (SECTION + SECTION, "", "duplicate <stlm_edge>"),
        ('<stlm_edge><threshold value="1" /><threshold value="2" /></stlm_edge>', "", "threshold is a duplicate"),
        ('<stlm_edge><threshold value="1" unit="x" /></stlm_edge>', "", "<threshold> is no metadata entry"),
        ('<stlm_edge><a value="1"><b value="2" /></a></stlm_edge>', "", "<a> is no metadata entry"),
        (f'<stlm_edge><threshold value="{"1" * 5000}" /></stlm_edge>', "", "longer than 4096 characters"),
        ("<stlm_edge>", "", "mismatched tag"),
        (SECTION, "<html></html>", "junk after document element"),
    ],
)
def test_damaged_or_hostile_xml_is_refused_in_one_line(section: str, before: str, reason: str, tmp_path: Path) -> None:
    artifact = write_ir(tmp_path / "model.openvino", section, before)
    with pytest.raises(UsageError, match=f"not an intact OpenVINO IR .*{reason}") as refused:
        read_metadata(artifact)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html></html>", "<html>, not <net>"),
        (f"{BOMB}<net/>".encode("utf-16"), "can't decode"),
        (f"{BOMB}<net name='S×S'/>".encode("latin-1"), "can't decode"),
    ],
)
def test_other_documents_and_encodings_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    artifact = write_ir(tmp_path / "model.openvino")
    (artifact / "model.xml").write_bytes(content)
    with pytest.raises(UsageError, match=f"not an intact OpenVINO IR .*{reason}"):
        read_metadata(artifact)


def test_huge_graph_is_not_read(tmp_path: Path) -> None:
    artifact = write_ir(tmp_path / "model.openvino")
    with (artifact / "model.xml").open("ab") as file:
        file.truncate(33 << 20)
    with pytest.raises(UsageError, match=r"not an intact OpenVINO IR \(more than \d+ bytes\)"):
        read_metadata(artifact)


def test_folder_must_hold_exactly_two_files(tmp_path: Path) -> None:
    artifact = write_ir(tmp_path / "model.openvino")
    (artifact / ".DS_Store").touch()
    check_files(artifact)
    with pytest.raises(UsageError, match=r"model\.xml: cannot be read"):
        read_metadata(tmp_path / "nowhere")
    (artifact / "extension.so").touch()
    with pytest.raises(
        UsageError, match=r"holds extension\.so, model\.bin, model\.xml; expected model\.xml, model\.bin"
    ):
        check_files(artifact)
    with pytest.raises(UsageError, match=r"holds no files; expected model\.xml, model\.bin"):
        check_files(tmp_path / "nowhere")
