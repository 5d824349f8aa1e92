"""Where the kernels run: on a GPU, or on any machine in Triton's interpreter.

Triton chooses the interpreter when it is imported, which other tests do without, so
`test_interpreter` runs these in a process of their own.
"""

from .cases import RUN

collect_ignore_glob = [] if RUN else ["test_fused_*.py"]
