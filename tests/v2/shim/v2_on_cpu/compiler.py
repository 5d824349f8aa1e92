"""A Triton compiler that is never called, which a backend must have."""

from typing import NoReturn

from triton.backends.compiler import BaseBackend, GPUTarget


class Compiler(BaseBackend):
    """Supports no target."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return False

    def hash(self) -> NoReturn:
        raise NotImplementedError

    def parse_options(self, options: dict[str, object]) -> NoReturn:
        raise NotImplementedError

    def add_stages(self, stages: object, options: object, language: object) -> NoReturn:
        raise NotImplementedError

    def load_dialects(self, context: object) -> NoReturn:
        raise NotImplementedError

    def get_module_map(self) -> NoReturn:
        raise NotImplementedError
