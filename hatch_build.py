"""Compile Podway's C parts: the build hook that hatchling runs for a wheel or an editable install.

`python hatch_build.py` does the same by hand. CC names the C compiler (`cc` by default), CLANG the one that
knows eBPF (`clang`).
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
BPF = ROOT / "src/podway/bpf"
PROGRAMS = (BPF / "bin/ipip.o", BPF / "bin/flow.o", BPF / "bin/drops.o")

PAUSE = ROOT / "src/podway/lab/kubernetes/bin/pause"

NUMBERS = ("MAGIC", "MAX_ENVIRONMENT", "MAX_STDIN", "MAX_ANSWER", "ANSWER_SECONDS", "DELETE_SECONDS")
STRINGS = ("SOCKET", "SPOOL")
CODES = ("INVALID_ENVIRONMENT", "IO_FAILURE", "INVALID_CONFIG", "TRY_AGAIN_LATER", "NOT_AVAILABLE")


def compile_shim() -> Path:
    """Compile the CNI shim and return its path. Exits with a message if there is no working C compiler."""
    command = [
        *shlex.split(os.environ.get("CC", "cc")),
        *("-std=c11", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"),
        *(f"-DPODWAY_{name}={value}" for name, value in macros().items()),
        str(CNI / "shim.c"),
    ]
    return _compile("the CNI shim", command, SHIM, "install gcc and libc6-dev (Debian), or name another in CC")


def compile_pause() -> Path:
    """Compile the program that only waits, for labs, and return its path. Exits with a message if that fails."""
    flags = ("-std=c11", "-D_GNU_SOURCE", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror")
    command = [*shlex.split(os.environ.get("CC", "cc")), *flags, "pause.c"]
    return _compile("pause", command, PAUSE, "install gcc and libc6-dev (Debian), or name another in CC")


def compile_programs() -> list[Path]:
    """Compile the eBPF programs and return their objects' paths. Exits with a message if there is no clang."""
    advice = "install clang and libbpf-dev (Debian), or name another in CLANG"
    return [_compile("the eBPF object", program_command(target), target, advice) for target in PROGRAMS]


def program_command(target: Path) -> list[str]:
    """Return the command that compiles the source of an eBPF object, but for where the object goes."""
    return [
        *shlex.split(os.environ.get("CLANG", "clang")),
        # -g: maps are described by BTF. No path of this machine gets in: the object's digest tells builds apart.
        *("-target", "bpf", "-O2", "-g", "-fdebug-compilation-dir=.", "-Wall", "-Wextra", "-Werror"),
        # Debian has the architecture's <asm/types.h> where a compiler for another target does not look.
        *("-idirafter", f"/usr/include/{os.uname().machine}-linux-gnu"),
        *("-c", f"{target.stem}.c"),
    ]


def _compile(what: str, command: list[str], target: Path, advice: str) -> Path:
    target.parent.mkdir(exist_ok=True)
    # Into place by rename: a program that is being executed cannot be written to.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch, target.name)
        try:
            subprocess.run([*command, "-o", str(built)], check=True, cwd=target.parent.parent)
        except FileNotFoundError:
            raise SystemExit(f"{what} needs a compiler, and {command[0]!r} is not there: {advice}") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{what} does not compile: {shlex.join(error.cmd)}") from None
        built.rename(target)
    return target


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

    class CompiledBuildHook(BuildHookInterface[BuilderConfig]):
        """Compiles the C parts and puts them into the wheel, which then is for one kind of machine."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """See hatchling's build hook reference."""
            for built in (compile_shim(), compile_pause(), *compile_programs()):
                build_data["artifacts"].append(str(built.relative_to(ROOT)))
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    print(compile_shim(), compile_pause(), *compile_programs(), sep="\n")
