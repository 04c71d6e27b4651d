"""What an OpenVINO IR says of itself: read and replaced without openvino, and hostile XML refused in one line."""

from pathlib import Path

import pytest

from stlm_edge.errors import UsageError
from stlm_edge.formats.openvino import check_files, read_metadata, replace_metadata

SECTION = """<stlm_edge>
\t\t\t<rule value="S×S &lt; 3" />
\t\t\t<threshold value="0.5" />
\t\t</stlm_edge>"""


def ir(folder: Path, section: str = SECTION, before: str = '<?xml version="1.0"?>\n') -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(b"\0" * 8)
    layers = '<layers><layer id="0" name="stlm_edge"/></layers>'
    text = f'{before}<net name="stlm">{layers}<rt_info>\n\t\t{section}\n\t</rt_info></net>\n'
    (folder / "model.xml").write_bytes(text.encode())
    return folder


def test_entries_are_read_and_replaced_and_all_else_stays_byte_for_byte(tmp_path: Path) -> None:
    artifact = ir(tmp_path / "model.openvino")
    before = (artifact / "model.xml").read_bytes()
    assert read_metadata(artifact) == {"stlm_edge.rule": "S×S < 3", "stlm_edge.threshold": "0.5"}
    replace_metadata(artifact, {"stlm_edge.threshold": "0.5"})
    assert (artifact / "model.xml").read_bytes() == before
    replace_metadata(artifact, {"stlm_edge.threshold": '0.75 "', "stlm_edge.median_score": "0.1"})
    assert read_metadata(artifact) == {
        "stlm_edge.rule": "S×S < 3",
        "stlm_edge.threshold": '0.75 "',
        "stlm_edge.median_score": "0.1",
    }
    replace_metadata(artifact, {"stlm_edge.threshold": "0.5"})
    assert (artifact / "model.xml").read_bytes().replace(b'\t\t\t<median_score value="0.1" />\n', b"") == before
    assert sorted(path.name for path in artifact.iterdir()) == ["model.bin", "model.xml"]


def test_one_without_metadata_of_ours_has_no_entries_and_takes_none(tmp_path: Path) -> None:
    artifact = ir(tmp_path / "model.openvino", section="")
    assert read_metadata(artifact) == {}
    with pytest.raises(UsageError, match="holds no metadata of ours, expected <stlm_edge> in its rt_info"):
        replace_metadata(artifact, {"stlm_edge.threshold": "1"})


BOMB = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'
OUTSIDE = '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n'


@pytest.mark.parametrize(
    ("section", "before", "reason"),
    [
        (SECTION, BOMB, "it has a DOCTYPE"),
        ('<stlm_edge><threshold value="&a;" /></stlm_edge>', OUTSIDE, "it has a DOCTYPE"),
        ('<stlm_edge><threshold value="&a;" /></stlm_edge>', "", "undefined entity"),
        (SECTION + SECTION, "", "<stlm_edge> stands twice"),
        ("<stlm_edge />", "", "<stlm_edge> is empty"),
        ('<stlm_edge><threshold value="1" /><threshold value="2" /></stlm_edge>', "", "threshold stands twice"),
        ('<stlm_edge><threshold value="1" unit="x" /></stlm_edge>', "", "<threshold> is no metadata entry"),
        ('<stlm_edge><a value="1"><b value="2" /></a></stlm_edge>', "", "<b> is no metadata entry"),
        (f'<stlm_edge><threshold value="{"1" * 5000}" /></stlm_edge>', "", "longer than 4096 characters"),
        ("<a>" * 100 + "</a>" * 100, "", "nested more than 32 deep"),
        ("<stlm_edge>", "", "mismatched tag"),
        (SECTION, "<html></html>", "it begins with <html>, not <net>"),
    ],
)
def test_what_is_no_plain_ir_is_refused_in_one_line(section: str, before: str, reason: str, tmp_path: Path) -> None:
    artifact = ir(tmp_path / "model.openvino", section, before)
    kept = (artifact / "model.xml").read_bytes()
    for attempt in (read_metadata, lambda path: replace_metadata(path, {"stlm_edge.threshold": "1"})):
        with pytest.raises(UsageError, match=f"not an intact OpenVINO IR .*{reason}") as refusal:
            attempt(artifact)
        assert "\n" not in str(refusal.value)
    assert (artifact / "model.xml").read_bytes() == kept


def test_a_huge_graph_is_not_read(tmp_path: Path) -> None:
    artifact = ir(tmp_path / "model.openvino")
    with (artifact / "model.xml").open("ab") as file:
        file.truncate(33 << 20)
    with pytest.raises(UsageError, match=r"not an intact OpenVINO IR \(more than \d+ bytes\)"):
        read_metadata(artifact)


def test_the_folder_holds_two_files(tmp_path: Path) -> None:
    artifact = ir(tmp_path / "model.openvino")
    check_files(artifact)
    with pytest.raises(UsageError, match=r"model\.xml: cannot be read \(No such file or directory\)"):
        read_metadata(tmp_path / "nowhere")
    (artifact / "extension.so").touch()
    with pytest.raises(UsageError, match=r"holds extension\.so, model\.bin, model\.xml; expected model\.xml and model"):
        check_files(artifact)
    with pytest.raises(UsageError, match=r"holds no files; expected model\.xml and model\.bin"):
        check_files(tmp_path / "nowhere")
