"""An EngineClient that hands everything on to another one."""

from typing import Any

from cdserve.engine.vllm import EngineClient


def _handed_on(name: str) -> Any:
    """Property for an attribute or method of the interface, read off the inner client."""

    def get(self: "EngineProxy") -> Any:
        return getattr(self.inner, name)

    return property(get)


class _Interface(type(EngineClient)):  # type: ignore[misc]
    """Fills a class with one property for each public name of the interface it does not define."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        public = [n for n in [*vars(EngineClient), *EngineClient.__annotations__] if n[0] != "_"]
        handed_on = {n: _handed_on(n) for n in public if n not in namespace}
        return super().__new__(cls, name, bases, {**handed_on, **namespace})


class EngineProxy(EngineClient, metaclass=_Interface):  # type: ignore[misc]
    """Hands on the whole interface, and what vLLM's server reads beyond it."""

    def __init__(self, inner: EngineClient) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: do not look for it in itself
            raise AttributeError(name)
        return getattr(self.inner, name)
