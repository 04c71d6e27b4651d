"""The Android demo's app, as far as it can be tested without Gradle and without a phone.

Its sources are compiled as Java 8 against the android.jar of API 23, which Debian once packaged, against LiteRT's
classes as far as the app calls them (`litert/`), and against signatures of the few newer ones (`newer_android/`); its
resources are linked by aapt2. So a typo, a missing resource, or a class or method that API 24 may lack fails here.
"""

import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import jdk
import pytest

import stlm_edge
from stlm_edge.bench.devices.adb import FILES, PACKAGE
from stlm_edge.commands import export

APP = jdk.ANDROID_DEMO / "app/src/main"
ANDROID_JAR = jdk.ANDROID_DEMO.parent / "build/android.jar"
NS = "{http://schemas.android.com/apk/res/android}"
NEWER_THAN_AAPT2 = r"<uses-native-library[^>]*/>"
BACKGROUNDS = {"values": "#FAFAFA", "values-night": "#303030"}  # of Theme.Material.Light and Theme.Material


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Boot class path of a phone: LiteRT and newer classes before the older android.jar."""
    jdk.need(jdk.GSON, jdk.JNA)
    if not ANDROID_JAR.exists():
        pytest.skip("no android.jar: run  make test-deps  on a Debian")
    folder = tmp_path_factory.mktemp("boot")
    compile_against([ANDROID_JAR], jdk.sources(jdk.LITERT, jdk.NEWER_ANDROID), folder, [jdk.JNA])
    return [folder, ANDROID_JAR]


@pytest.fixture(scope="module")
def core(boot: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core, compiled against Android's classes: it uses none that API 24 lacks."""
    folder = tmp_path_factory.mktemp("core-on-android")
    compile_against(boot, jdk.sources(jdk.CORE), folder, [jdk.GSON])
    return folder


def compile_against(boot: list[Path], files: list[Path], folder: Path, classpath: list[Path]) -> None:
    options = ["-source", "8", "-target", "8", "-bootclasspath", jdk.joined(boot)]
    jdk.compile_java(files, folder, classpath, *options)


def build(app: Path, folder: Path, boot: list[Path], core: Path) -> None:
    """Link resources and compile sources of an app's folder. Raises AssertionError with the tools' output."""
    if shutil.which("aapt2") is None:
        pytest.skip("no aapt2: run  make test-deps")
    text = (app / "AndroidManifest.xml").read_text()
    text = re.sub(NEWER_THAN_AAPT2, "", text.replace("<manifest ", '<manifest package="org.stlm_edge.demo" ', 1))
    (folder / "AndroidManifest.xml").write_text(text)  # Gradle fills in the package
    run("aapt2", "compile", "--dir", app / "res", "-o", folder / "resources.zip")
    versions = ["--min-sdk-version", "24", "--target-sdk-version", "36"]
    linked = ["-o", folder / "app.apk", "--java", folder / "generated", *versions, folder / "resources.zip"]
    run("aapt2", "link", "-I", ANDROID_JAR, "--manifest", folder / "AndroidManifest.xml", *linked)
    (folder / "classes").mkdir()
    compile_against(boot, jdk.sources(app / "java", folder / "generated"), folder / "classes", [core])


def run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sources_compile_and_resources_link(boot: list[Path], core: Path, tmp_path: Path) -> None:
    build(APP, tmp_path, boot, core)
    activities = {path.name for path in (tmp_path / "classes").rglob("*Activity.class")}
    assert activities == {"MainActivity.class", "SettingsActivity.class", "SelfCheckActivity.class"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("java/org/stlm_edge/demo/MainActivity.java", "R.string.camera_denied", "R.string.camera_refused"),
        ("java/org/stlm_edge/demo/LiteRtModel.java", "writeFloat", "writeUint8"),
        ("java/org/stlm_edge/demo/Shot.java", "setHasAlpha", "setAlphaIgnored"),
        ("res/layout/panel.xml", "@string/photo", "@string/foto"),
        ("res/layout/main.xml", "@layout/panel", "@layout/pannel"),
        ("AndroidManifest.xml", "@drawable/icon", "@mipmap/icon"),
    ],
)
def test_typo_fails_the_build(boot: list[Path], core: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    app = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("assets"))
    text = (app / file).read_text()
    assert old in text
    (app / file).write_text(text.replace(old, new))
    with pytest.raises(AssertionError, match=new.split("/")[-1].split(".")[-1]):
        build(app, tmp_path, boot, core)


def test_java_of_the_readme_compiles(boot: list[Path], core: Path, tmp_path: Path) -> None:
    readme = (jdk.ANDROID_DEMO / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```java\n(.*?)```", readme, re.DOTALL)
    lines = snippet.splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("import")]) <= 20
    imports = "\n".join(line for line in lines if line.startswith("import"))
    body = "\n".join(line for line in lines if not line.startswith("import"))
    bitmap_image = APP / "java/org/stlm_edge/demo/BitmapImage.java"
    place = tmp_path / "Snippet.java"
    given = "android.content.Context context, android.graphics.Bitmap bitmap, int exif"
    method = f"static void run({given}) throws Exception {{\n{body}\n}}"
    place.write_text(f"package org.stlm_edge.demo;\n{imports}\nclass Snippet {{ {method} }}\n")
    (tmp_path / "classes").mkdir()
    compile_against(boot, [place, bitmap_image], tmp_path / "classes", [core])


def test_each_string_is_used_and_given_its_values() -> None:
    strings = {
        item.get("name"): item.text or "" for item in ElementTree.parse(APP / "res/values/strings.xml").getroot()
    }
    java = "\n".join(path.read_text() for path in jdk.sources(APP / "java"))
    xml = "\n".join(path.read_text() for path in [*APP.glob("res/layout*/*.xml"), APP / "AndroidManifest.xml"])
    for name, text in strings.items():
        assert re.search(rf"R\.string\.{name}\b", java) or f'"@string/{name}"' in xml, f"{name} is not used"
        shown = {int(number) for number in re.findall(r"%(\d)\$", text)}
        assert shown == set(range(1, len(shown) + 1)), f"{name}: {text}"
        for call in re.findall(rf"getString\(\s*R\.string\.{name}\b((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", java):
            given = len(re.sub(r"\((?:[^()]|\([^()]*\))*\)", "", call).split(",")) - 1
            assert given == len(shown), f"{name} shows {len(shown)} values, is given {given}: {call}"


def test_every_control_has_a_label() -> None:
    layouts = list(APP.glob("res/layout*/*.xml"))
    assert len(layouts) == 5
    touched = 0
    for layout in layouts:
        root = ElementTree.parse(layout).getroot()
        labelled = {item.get(f"{NS}labelFor", "").split("/")[-1] for item in root.iter()}
        for item in root.iter():
            if item.tag in ("Button", "RadioButton", "SeekBar", "EditText") or "." in item.tag:
                touched += 1
                name = item.get(f"{NS}id", "").split("/")[-1]
                words = item.get(f"{NS}text") or item.get(f"{NS}contentDescription") or name in labelled
                assert words, f"{layout.name}: {name} has no label"
            if size := item.get(f"{NS}textSize"):
                assert size.endswith("sp"), f"{layout.name}: text of {size} does not grow with the user's setting"
    assert touched > 10


@pytest.mark.parametrize("theme", BACKGROUNDS)
def test_verdicts_are_readable_in_light_and_dark(theme: str) -> None:
    for colour in ElementTree.parse(APP / f"res/{theme}/colors.xml").getroot():
        one, other = luminance(colour.text or ""), luminance(BACKGROUNDS[theme])
        contrast = (max(one, other) + 0.05) / (min(one, other) + 0.05)
        assert contrast >= 4.5, f"{theme} {colour.get('name')}: {contrast:.1f}"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_only_the_activities_that_adb_starts_are_exported() -> None:
    root = ElementTree.parse(APP / "AndroidManifest.xml").getroot()
    exported = {item.get(f"{NS}name") for item in root.iter("activity") if item.get(f"{NS}exported") == "true"}
    assert exported == {".MainActivity", ".SelfCheckActivity"}
    source = (APP / "java/org/stlm_edge/demo/SelfCheckActivity.java").read_text()
    extras = set(re.findall(r'get(?:String|Int|Boolean)Extra\("(\w+)"', source))
    assert extras == {"bundle", "queries", "delegate", "seconds", "threads", "even_if_wrong"}
    gradle = (jdk.ANDROID_DEMO / "app/build.gradle").read_text()
    assert "applicationId 'org.stlm_edge.demo'" in gradle


def test_self_check_of_the_readme_matches_the_bench_and_the_app() -> None:
    readme = (jdk.ANDROID_DEMO / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(adb .*?)```", readme, re.DOTALL | re.MULTILINE)
    push, start, pull = (shlex.split(line) for line in block.splitlines())
    assert push[:2] == ["adb", "push"]
    name = push[2].rpartition("/")[2]
    assert push[3:] == [f"{FILES}/bundles/{name}"]
    assert pull == ["adb", "pull", f"{FILES}/bench.json"]
    assert start[:6] == ["adb", "shell", "am", "start", "-n", f"{PACKAGE}/.SelfCheckActivity"]
    more = shlex.split(" ".join(re.findall(r"`(--e[isz] \w+ \w+)`", readme)))
    given = [(kind, key) for kind, key in zip(start[6::3] + more[::3], start[7::3] + more[1::3], strict=True)]
    source = (APP / "java/org/stlm_edge/demo/SelfCheckActivity.java").read_text()
    kinds = {"String": "--es", "Int": "--ei", "Boolean": "--ez"}
    read = {(kinds[kind], key) for kind, key in re.findall(r'get(String|Int|Boolean)Extra\("(\w+)"', source)}
    assert set(given) == read
    assert dict(zip(start[7::3], start[8::3], strict=True))["bundle"] == name


def test_versions_agree() -> None:
    gradle = (jdk.ANDROID_DEMO / "app/build.gradle").read_text()
    assert f"versionName '{stlm_edge.__version__}'" in gradle
    plugin = (jdk.ANDROID_DEMO / "build.gradle").read_text()
    wrapper = (jdk.ANDROID_DEMO / "gradle/wrapper/gradle-wrapper.properties").read_text()
    assert "com.android.application' version '8.11.0'" in plugin
    assert "gradle-8.13-bin.zip" in wrapper  # the least that this plugin takes
    assert re.search(r"^distributionSha256Sum=[0-9a-f]{64}$", wrapper, re.MULTILINE)


def test_device_without_camera_can_install_the_app() -> None:
    root = ElementTree.parse(APP / "AndroidManifest.xml").getroot()
    optional = {item.get(f"{NS}name") for item in root.iter("uses-feature") if item.get(f"{NS}required") == "false"}
    implied_by_the_permission = {"android.hardware.camera", "android.hardware.camera.autofocus"}
    assert implied_by_the_permission <= optional


def test_the_readmes_export_puts_the_bundle_where_the_app_looks() -> None:
    readme = (jdk.ANDROID_DEMO / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^stlm-export .*$", readme, re.MULTILINE)
    options = export.parser().parse_args(shlex.split(line)[1:])
    assets = jdk.ANDROID_DEMO.name + "/app/src/main/assets/"
    (inside,) = re.findall(r'ASSETS = "(.*)"', (APP / "java/org/stlm_edge/demo/Bundles.java").read_text())
    assert options.target == "android"
    assert f"{options.out}/" == assets + inside


def test_the_app_and_the_desk_have_one_release_of_litert() -> None:
    gradle = (jdk.ANDROID_DEMO / "app/build.gradle").read_text()
    strings = ElementTree.parse(APP / "res/values/strings.xml").getroot()
    (recorded,) = [item.text for item in strings if item.get("name") == "litert"]
    assert set(re.findall(r"com\.google\.ai\.edge\.litert:[\w-]+:([\d.]+)", gradle)) == {recorded}
    assert recorded == version("ai-edge-litert")
