"""An EngineClient that delegates to another one."""

from typing import Any

from cdserve.engine.vllm import EngineClient


def _delegated(name: str) -> Any:
    """A property that reads an attribute or method of the inner client."""

    def get(self: "EngineProxy") -> Any:
        return getattr(self.inner, name)

    return property(get)


class _Interface(type(EngineClient)):  # type: ignore[misc]
    """Adds a delegating property for each public name of the interface that a class lacks."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        public = [n for n in [*vars(EngineClient), *EngineClient.__annotations__] if n[0] != "_"]
        delegated = {n: _delegated(n) for n in public if n not in namespace}
        return super().__new__(cls, name, bases, {**delegated, **namespace})


class EngineProxy(EngineClient, metaclass=_Interface):  # type: ignore[misc]
    """Delegates the whole interface, and any attribute beyond it that vLLM's server reads."""

    def __init__(self, inner: EngineClient) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: avoid infinite recursion
            raise AttributeError(name)
        return getattr(self.inner, name)
