"""Compile and run Java with Debian's JDK, JUnit 5, Gson and JNA."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

ANDROID_DEMO = Path(__file__).parents[2] / "android_demo"
CORE = ANDROID_DEMO / "core/src/main/java"
APP = ANDROID_DEMO / "app/src/main/java"
TESTS = Path(__file__).parent / "java"
LITERT = Path(__file__).parent / "litert"  # the part of LiteRT's Java API that the app calls, on its C API
NEWER_ANDROID = Path(__file__).parent / "newer_android"  # signatures that android.jar lacks
JVM_ANDROID = Path(__file__).parent / "jvm_android"  # the two Android classes that the app's model uses
DEBIAN = Path("/usr/share/java")
GSON = DEBIAN / "gson.jar"
JNA = DEBIAN / "jna.jar"
JUNIT = [
    DEBIAN / f"{name}.jar"
    for name in (
        *("junit-jupiter-api", "junit-jupiter-engine", "junit-jupiter-params"),
        *("junit-platform-commons", "junit-platform-engine", "junit-platform-launcher"),
        *("junit-platform-console", "junit-platform-reporting"),
        *("opentest4j", "opentest4j-reporting-events", "opentest4j-reporting-schema"),
        *("apiguardian-api", "picocli", "univocity-parsers"),
    )
]


def need(*jars: Path) -> None:
    """Skip the test if the JDK or one of the jars is not installed."""
    if shutil.which("javac") is None:
        pytest.skip("no JDK: run  make test-deps")
    missing = [jar.name for jar in jars if not jar.exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not in {DEBIAN}: run  make test-deps")


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.java"))


def compile_java(files: Iterable[Path], classes: Path, classpath: Sequence[Path], *options: str) -> None:
    """Compile; warnings are errors."""
    strict = ("-Xlint:all,-options,-serial,-processing,-path", "-Werror", "-encoding", "UTF-8")
    done = run("javac", *strict, "-d", str(classes), "-cp", joined(classpath), *options, *map(str, files))
    assert done.returncode == 0, done.stderr


def junit(classes: Path, classpath: Sequence[Path], properties: dict[str, object], *select: str) -> str:
    """Run JUnit in 128 MB of heap; return its report. Fails if a test fails, or if there is none."""
    settings = [f"-D{key}={value}" for key, value in properties.items()]
    done = run(
        *(
            "java",
            "-Xmx128m",
            "-Xshare:auto",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-XX:ErrorFile=/dev/stderr",
            *settings,
        ),
        *("-cp", joined([classes, *classpath, *JUNIT]), "org.junit.platform.console.ConsoleLauncher"),
        *("--disable-banner", "--disable-ansi-colors", "--fail-if-no-tests", *select),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def joined(classpath: Sequence[Path]) -> str:
    return ":".join(map(str, classpath))
