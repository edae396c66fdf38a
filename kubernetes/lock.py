"""Print the whole environment of the images and clusters as pins, for requirements.lock: `make lock`.

They are the versions that are installed here, so run it where every test passes: pyproject.toml's dependencies with
the extras `server` and `postgres` and all that those need, but not what only tests need. Without hashes: a wheel has
another for each Python and machine, and the images' Python is not this one.
"""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("server", "postgres")
ROOT = Path(__file__).resolve().parents[1]


def needed(root: Path = ROOT) -> list[Requirement]:
    """What pyproject.toml asks for in the images."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + [text for name in EXTRAS for text in project["optional-dependencies"][name]]
    return [Requirement(text) for text in texts]


def pins(wanted: list[Requirement]) -> dict[str, str]:
    """The installed version of each package that is wanted, and of all that those want, by name."""
    found: dict[str, str] = {}
    seen, left = set(), list(wanted)
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found[name] = version(name)
        for each in map(Requirement, requires(name) or ()):
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                left.append(each)
    return found


if __name__ == "__main__":
    print("# The versions of the images and of ray_cluster.yaml's nodes. Made by `make lock`, not by hand.")
    print(*(f"{name}=={number}" for name, number in sorted(pins(needed()).items())), sep="\n")
