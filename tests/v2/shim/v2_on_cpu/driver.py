"""A Triton driver that compiles nothing: with ``TRITON_INTERPRET`` every kernel is interpreted."""

from typing import Any, NoReturn

from triton.backends.driver import DriverBase


class Driver(DriverBase):
    """Active, and never asked: the interpreter does not launch through drivers."""

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> NoReturn:
        raise NotImplementedError(ty)

    def get_current_target(self) -> NoReturn:
        raise NotImplementedError

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> NoReturn:
        raise NotImplementedError
