"""Compile the CNI shim: the build hook that hatchling runs for a wheel or an editable install.

`python hatch_build.py` does the same by hand. CC names the compiler, `cc` by default.
"""

import importlib.util
import os
import runpy
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
CNI = ROOT / "src/podway/cni"
SHIM = CNI / "bin/podway"

NUMBERS = ("MAGIC", "MAX_ENVIRONMENT", "MAX_STDIN", "MAX_ANSWER", "ANSWER_SECONDS", "DELETE_SECONDS")
STRINGS = ("SOCKET", "SPOOL")
CODES = ("INVALID_ENVIRONMENT", "IO_FAILURE", "INVALID_CONFIG", "TRY_AGAIN_LATER", "NOT_AVAILABLE")


def compile_shim() -> Path:
    """Compile the shim and return its path. Exits with a message if there is no working C compiler."""
    SHIM.parent.mkdir(exist_ok=True)
    # Into place by rename: a shim that is being executed cannot be written to.
    with tempfile.TemporaryDirectory(dir=SHIM.parent) as scratch:
        built = Path(scratch, "podway")
        command = [
            *shlex.split(os.environ.get("CC", "cc")),
            *("-std=c11", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
            *(f"-DPODWAY_{name}={value}" for name, value in macros().items()),
            *("-o", str(built), str(CNI / "shim.c")),
        ]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise SystemExit(
                f"the CNI shim needs a C compiler, and {command[0]!r} is not there: "
                "install gcc and libc6-dev (Debian), or name another in CC"
            ) from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"the CNI shim does not compile: {shlex.join(error.cmd)}") from None
        built.rename(SHIM)
    return SHIM


def macros() -> dict[str, str]:
    """Return what the shim shares with the agent: the names and numbers of podway.cni.spec, as C."""
    spec = runpy.run_path(str(CNI / "spec.py"))
    return {
        "VERSIONS": ",".join(map(_c_string, spec["VERSIONS"])),
        **{name: str(spec[name]) for name in NUMBERS},
        **{name: _c_string(spec[name]) for name in STRINGS},
        **{name: str(int(spec["Code"][name])) for name in CODES},
    }


def _c_string(text: str) -> str:
    return f'"{text}"'


if importlib.util.find_spec("hatchling"):  # not there when run by hand, outside a build
    from hatchling.builders.config import BuilderConfig
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class ShimBuildHook(BuildHookInterface[BuilderConfig]):
        """Compiles the shim and puts it into the wheel, which then is for one kind of machine."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """See hatchling's build hook reference."""
            shim = compile_shim()
            build_data["artifacts"].append(str(shim.relative_to(ROOT)))
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    print(compile_shim())
