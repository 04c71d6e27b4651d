"""Classes of the demo's core and of its tests, compiled once."""

from pathlib import Path

import jdk
import pytest


@pytest.fixture(scope="session")
def core_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`android_demo/core`, compiled as Java 8."""
    jdk.need(jdk.GSON)
    classes = tmp_path_factory.mktemp("core-classes")
    jdk.compile_java(jdk.sources(jdk.CORE), classes, [jdk.GSON], "--release", "8")
    return classes


@pytest.fixture(scope="session")
def core_test_classes(core_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Java tests, and the app's model on LiteRT classes that call the library in Python's wheel."""
    jdk.need(*jdk.JUNIT, jdk.JNA)
    folder = tmp_path_factory.mktemp("core-test-classes")
    files = [jdk.APP / "org/stlm_edge/demo/LiteRtModel.java", *jdk.sources(jdk.TESTS, jdk.LITERT, jdk.JVM_ANDROID)]
    jdk.compile_java(files, folder, [core_classes, jdk.GSON, jdk.JNA, *jdk.JUNIT])
    return folder
