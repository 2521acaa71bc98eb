"""The pure parts of the set-up: versions, patches, cache keys, choices and error messages."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch.version as installed_torch

from launch.install import (
    cache,
    gpu,
    horovod_build,
    horovod_patch,
    mpi,
    prerequisites,
    runner_patch,
    stamp,
    torch_facts,
    wheels,
)
from launch.install.environment import explain_pip
from launch.install.progress import cmake_percent
from launch.install.settings import Choices, InputError, SetupError, resolve

ROOT = Path(__file__).resolve().parents[1]

CPU_TORCH = torch_facts.TorchFacts(
    version="2.13.0+cpu",
    cuda="",
    folder="/none",
    cxx_standard=17,
    distribution="2.13.0+cpu",
    python_tag="cp311",
)
CUDA_TORCH = dataclasses.replace(CPU_TORCH, version="2.14.1+cu130", cuda="13.0")


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def cuda_toolkit(folder: Path, version: str) -> Path:
    executable(folder / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {version}, V{version}.88'")
    return folder


class TestChoices:
    def test_defaults(self, tmp_path):
        assert resolve({}, {}, tmp_path) == Choices("2.13.0", "pypi", "", "auto")

    def test_choices_are_remembered_until_overridden(self, tmp_path):
        (tmp_path / "w").mkdir()
        first = resolve({"torch": "system", "wheels": "w", "mpi": "", "gpu": ""}, {}, tmp_path)
        assert first == Choices("system", "pypi", str(tmp_path / "w"), "auto")
        assert resolve({"torch": ""}, first.as_dict(), tmp_path) == first
        assert resolve({"wheels": "none", "torch": "2.14.1"}, first.as_dict(), tmp_path) == Choices("2.14.1")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"torch": "latest"}, "TORCH=latest: expected a version such as 2.13.0, or 'system'"),
            ({"torch": "2.9.1"}, "torch 2.9.1 is too old: the trainer needs 2.11 or newer"),
            ({"mpi": "mpich"}, "MPI=mpich: expected one of pypi, system"),
            ({"gpu": "1"}, "GPU=1: expected one of auto, yes, no"),
            ({"wheels": "missing"}, "missing: no such folder. Fill one with `make wheels"),
        ],
    )
    def test_invalid_choices_are_refused(self, tmp_path, given, message):
        with pytest.raises(InputError, match=message.replace(".", r"\.")) as caught:
            resolve(given, {}, tmp_path)
        assert caught.value.exit_code == 2

    def test_the_command_prints_a_message_instead_of_a_traceback(self):
        command = [sys.executable, "-m", "launch.install", "setup", "--torch", "newest"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("\nmake setup: TORCH=newest: expected")
        assert "Traceback" not in done.stderr


class TestCacheKey:
    def key(
        self, torch=CPU_TORCH, chosen_mpi=mpi.PYPI_MPI, chosen_gpu=None, machine="x86_64", libc="glibc2.36"
    ):
        return cache.key(torch, chosen_mpi, chosen_gpu, machine=machine, libc=libc)

    def test_key_is_readable(self):
        combination = "torch-2.13.0+cpu_openmpi-4.1.8_cp311_cuda-none_cpu_x86_64_glibc2.36"
        assert self.key() == f"horovod-0.28.1-{cache.RECIPE}_{combination}"

    def test_everything_the_library_depends_on_changes_the_key(self):
        built_with_nccl = gpu.Gpu(Path("/c"), "13.0", Path("/i"), Path("/l"))
        keys = [
            self.key(),
            self.key(torch=dataclasses.replace(CPU_TORCH, version="2.13.0+cu130")),
            self.key(torch=dataclasses.replace(CPU_TORCH, python_tag="cp312")),
            self.key(torch=dataclasses.replace(CPU_TORCH, cuda="12.8")),
            self.key(torch=CUDA_TORCH, chosen_gpu=built_with_nccl),
            self.key(torch=CUDA_TORCH),
            self.key(chosen_mpi=mpi.Mpi("openmpi", "4.1.8", system=True)),
            self.key(chosen_mpi=mpi.Mpi("mpich", "4.2", system=True)),
            self.key(machine="aarch64"),
            self.key(libc="glibc2.28"),
        ]
        assert len(set(keys)) == len(keys)

    @pytest.mark.parametrize("changed", ["horovod_patch.py", "horovod_build.py"])
    def test_a_change_of_the_patch_or_the_build_changes_the_recipe(self, tmp_path, changed):
        for name in ("horovod_patch.py", "horovod_build.py"):
            (tmp_path / name).write_bytes((ROOT / "launch" / "install" / name).read_bytes())
        assert cache.recipe(tmp_path) == cache.RECIPE
        assert cache.RECIPE in self.key()
        (tmp_path / changed).write_text("# another")
        assert cache.recipe(tmp_path) != cache.RECIPE

    def test_the_cache_is_in_the_users_home(self):
        assert cache.store({"HOME": "/h"}) == Path("/h/.cache/hybrid-trainer/wheels")
        assert cache.store({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/hybrid-trainer/wheels")

    def test_the_slower_of_two_builds_uses_the_wheel_of_the_faster(self, tmp_path):
        wheel = tmp_path / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
        wheel.write_text("first")
        folder = tmp_path / "store" / "key"
        assert cache.find(folder) is None
        stored = cache.put(wheel, folder)
        wheel.write_text("second")
        assert cache.put(wheel, folder) == stored
        assert stored.read_text() == "first"
        assert [path.name for path in folder.parent.iterdir()] == ["key"], "no partial file is left"


class TestHorovodPatch:
    MAIN = "project(horovod CXX)\n\nset(CMAKE_CXX_STANDARD 14)\nset(CMAKE_CXX_STANDARD_REQUIRED ON)\n"

    def test_standard_and_run_path(self):
        text = horovod_patch.patch_standard(self.MAIN, 20, "CMakeLists.txt")
        text = horovod_patch.patch_run_path(text, ("/opt/mpi/lib",), "CMakeLists.txt")
        assert "set(CMAKE_CXX_STANDARD 20)\nset(CMAKE_CXX_STANDARD_REQUIRED ON)\n" in text
        assert 'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../..;$ORIGIN/../../torch/lib;/opt/mpi/lib")' in text
        assert " 14" not in text

    def test_a_build_has_no_debug_information_and_is_as_optimized(self):
        """Horovod then replaces the -O2 of these flags by -O3."""
        text = horovod_patch.patch_debug_info(self.MAIN, "CMakeLists.txt")
        assert 'project(horovod CXX)\nset(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")\n' in text

    def test_the_patches_fit_together(self, tmp_path):
        """Each patch changes its file once, and other patches of that file leave its place intact."""
        for name, text in {
            "CMakeLists.txt": self.MAIN,
            "horovod/torch/CMakeLists.txt": "    set(CMAKE_CXX_STANDARD 14)\n",
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        horovod_patch.patch(tmp_path, 17, ())
        main = (tmp_path / "CMakeLists.txt").read_text()
        assert "CMAKE_CXX_STANDARD 17" in main
        assert "CMAKE_INSTALL_RPATH" in main
        assert "CMAKE_CXX_FLAGS_RELWITHDEBINFO" in main


class TestRunnerPatch:
    SOURCE: ClassVar[dict[str, str]] = {  # what of Horovod's launcher is patched
        "runner/gloo_run.py": "\n        exit_code, timestamp = value\n        if exit_code != 0:\n",
        "runner/launch.py": (
            "from horovod.runner.common.util import config_parser, hosts\n"
            "    if len(remote_host_names) > 0:\n        if settings.verbose >= 2:\n"
            "            args.hosts = f'localhost:{args.num_proc}'\n"
            "def run_commandline():\n    args = parse_args()\n"
        ),
        "runner/mpi_run.py": (
            "from horovod.runner.common.util import env as env_util, hosts\n"
            "        elif 'MPICH' in output:\n            return _MPICH_IMPL\n"
            "    basic_args = '-l' if impi_or_mpich else '--allow-run-as-root --tag-output'\n"
            "        'mpirun {basic_args} '\n        .format(basic_args=basic_args,\n"
            "    else:\n"
            "        os.execve('/bin/sh', ['/bin/sh', '-c', mpirun_command], env)\n"
        ),
        "runner/driver/driver_service.py": (
            "from horovod.runner.common.util import codec\n"
            "    if lsf.LSFUtils.using_lsf():\n        return None\n\n"
        ),
    }

    def test_the_patches_fit_together(self, tmp_path):
        """Each patch changes its file once, and other patches of that file leave its place intact."""
        for name, text in self.SOURCE.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        runner_patch.patch(tmp_path)
        assert "before_ranks_start()\n    args" in (tmp_path / "runner/launch.py").read_text()
        runner = (tmp_path / "runner/mpi_run.py").read_text()
        assert "tag-output" not in runner
        assert "'-l'" not in runner
        assert "elif 'MPICH' in output or 'HYDRA build details' in output:\n" in runner
        left = {path.name for path in (tmp_path / "runner").iterdir()}
        added = {file.name for file in runner_patch.ADDED}
        assert left == {"driver", "gloo_run.py", "launch.py", "mpi_run.py"} | added

    def test_a_set_up_with_other_patches_is_stale(self):
        assert runner_patch.recipe() in stamp.VERSIONS

    def test_gloo_exit_code(self):
        """Only the static launcher's loop changes; the elastic launcher's loop has a deeper indentation."""
        check = "\n{0}exit_code, timestamp = value\n{0}if exit_code != 0:\n{0}    raise RuntimeError()\n"
        static, elastic = check.format(8 * " "), check.format(12 * " ")
        text = runner_patch.patch_exit_code(static + elastic, "gloo_run.py")
        assert text.count("raise SystemExit(exit_code)\n") == 1
        assert text.index("SystemExit") < text.index("RuntimeError")
        assert text.endswith(elastic)

    def test_the_source_of_another_version_is_refused(self):
        with pytest.raises(
            SetupError, match=r"CMakeLists.txt .* 0 times, expected once: this is not the source"
        ):
            horovod_patch.patch_standard("set(CMAKE_CXX_STANDARD 17)", 17, "CMakeLists.txt")


class TestTorchFacts:
    @pytest.mark.parametrize(
        ("header", "standard"),
        [
            ("#if !defined(_MSC_VER) && __cplusplus < 201703L\n#error C++17 or later", 17),  # torch 2.13
            ("#if !defined(_MSC_VER) && __cplusplus < 202002L\n#error C++20 or later", 20),  # torch 2.14
            ("", 17),
        ],
    )
    def test_standard_comes_from_the_headers_of_torch(self, header, standard):
        assert torch_facts.required_standard(header) == standard

    def test_version_without_importing(self, tmp_path):
        (tmp_path / "version.py").write_text("__version__ = '2.14.1+cu130'\ncuda: Optional[str] = '13.0'\n")
        assert torch_facts.read_version(tmp_path) == "2.14.1+cu130"
        assert torch_facts.read_version(tmp_path / "gone") == ""

    def test_facts_of_the_torch_that_runs_these_tests(self):
        found = torch_facts.ask(Path(sys.executable), ROOT, {})
        assert found is not None
        assert found.version == installed_torch.__version__
        assert found.cuda == (installed_torch.cuda or "")
        assert Path(found.folder) == Path(installed_torch.__file__).parent


class TestGpu:
    def test_a_cpu_torch_gets_a_cpu_build(self):
        assert gpu.plan("auto", CPU_TORCH, {}, strict=True) is None
        with pytest.raises(InputError, match=r"GPU=yes: torch 2\.13\.0\+cpu has no CUDA"):
            gpu.plan("yes", CPU_TORCH, {}, strict=True)

    def test_nccl_is_found_beside_torch(self, tmp_path):
        torch = dataclasses.replace(CUDA_TORCH, folder=str(tmp_path / "site" / "torch"))
        nccl = tmp_path / "site" / "nvidia" / "nccl"
        for file in ("include/nccl.h", "lib/libnccl.so.2"):
            (nccl / file).parent.mkdir(parents=True, exist_ok=True)
            (nccl / file).touch()
        env = {"CUDA_HOME": str(cuda_toolkit(tmp_path / "cuda", "13.0"))}
        found = gpu.plan("auto", torch, env, strict=True)
        assert found == gpu.Gpu(tmp_path / "cuda", "13.0", nccl / "include", nccl / "lib" / "libnccl.so.2")
        flags = horovod_build.flags(found, Path("/link"), 2)
        assert flags["HOROVOD_GPU_OPERATIONS"] == "NCCL"
        assert flags["HOROVOD_NCCL_LIB"] == "/link"
        assert "HOROVOD_GPU_OPERATIONS" not in horovod_build.flags(None, Path("/link"), 2)

    def test_a_build_without_nccl_knows_the_toolkit_too(self, tmp_path):
        """Horovod compiles for a torch with CUDA, and looked for the headers beside a script called nvcc."""
        home = cuda_toolkit(tmp_path / "cuda", "13.0")
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
        env = {"PATH": str(home / "bin")}
        expected = {"CUDA_HOME": str(home), "HOROVOD_CUDA_HOME": str(home)}
        assert horovod_build.toolkit(CUDA_TORCH, env) == expected
        assert horovod_build.toolkit(CPU_TORCH, env) == {}

    def test_a_toolkit_of_another_cuda_is_refused(self, tmp_path):
        env = {"CUDA_HOME": str(cuda_toolkit(tmp_path, "12.8"))}
        with pytest.raises(InputError, match=r"uses CUDA 13\.0, but .* is CUDA 12\.8\. Set CUDA_HOME"):
            gpu.plan("auto", CUDA_TORCH, env, strict=True)
        assert gpu.plan("no", CUDA_TORCH, env, strict=True) is None


class TestMpi:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("mpirun (Open MPI) 4.1.8\n\nReport bugs to https://...", ("openmpi", "4.1.8")),
            ("HYDRA build details:\n    Version:       4.2.1\n", ("mpich", "4.2.1")),
            ("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 2023", ("intelmpi", "2021.9")),
        ],
    )
    def test_version(self, text, expected):
        assert mpi.parse_version(text) == expected

    def test_open_mpi_5_is_refused_with_the_reason(self, tmp_path):
        executable(tmp_path / "mpirun", "echo 'mpirun (Open MPI) 5.0.6'")
        executable(tmp_path / "mpicxx", "true")
        with pytest.raises(InputError, match=r"Open MPI 5\.0\.6\. horovodrun always passes `-bind-to none"):
            mpi.find_system({"PATH": f"{tmp_path}:/usr/bin:/bin"})

    def test_missing_wrapper(self, tmp_path):
        executable(tmp_path / "mpirun", "echo 'mpirun (Open MPI) 4.1.6'")
        with pytest.raises(InputError, match="no mpicxx on PATH"):
            mpi.find_system({"PATH": str(tmp_path)})

    def test_a_library_of_mpich_by_another_name_gets_that_of_its_abi(self, tmp_path):
        """Debian's MPICH is libmpich.so.12; mpi4py needs a library that says that it is libmpi.so.12."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "lib").mkdir()
        executable(tmp_path / "bin" / "python", "exit 1")  # which does not find libmpi.so.12
        code = "int MPI_Get_version(int *version, int *minor) { return *version = 4; }"
        mpich = tmp_path / "libmpich.so.12"
        compiler = ["cc", "-xc", "-shared", "-fPIC", f"-Wl,-soname,{mpich.name}", "-", "-o", str(mpich)]
        subprocess.run(compiler, input=code, text=True, check=True)
        executable(tmp_path / "bin" / "mpicxx", f'exec c++ "$@" -x none {mpich}')
        env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        mpi.provide_mpich_abi(mpi.Mpi("mpich", "4.0.2", system=True), tmp_path, env)
        made = tmp_path / "lib" / "libmpi.so.12"
        load = f"import ctypes; ctypes.CDLL({str(made)!r}).MPI_Get_version; ctypes.CDLL('libmpi.so.12')"
        env["LD_LIBRARY_PATH"] = str(tmp_path)
        subprocess.run([sys.executable, "-c", load], env=env, check=True)
        mpi.provide_mpich_abi(mpi.PYPI_MPI, tmp_path, env)
        assert not made.exists()

    def test_unknown_launcher(self):
        with pytest.raises(InputError, match="printed 'srun 23', expected Open MPI 4"):
            mpi.parse_version("srun 23\n")


class TestErrors:
    def test_a_missing_compiler(self, tmp_path):
        with pytest.raises(
            InputError, match=r"none of c\+\+, g\+\+, clang\+\+ is on PATH.*\n.*apt-get install g\+\+"
        ):
            prerequisites.find_compiler({"PATH": str(tmp_path)})
        with pytest.raises(InputError, match=r"CXX=icpc is not on PATH"):
            prerequisites.find_compiler({"PATH": str(tmp_path), "CXX": "icpc"})

    def test_the_first_error_of_a_build_and_its_remedy(self):
        error = "/h/a.h:3:10: fatal error: Python.h: No such file or directory"
        text = horovod_build.explain("noise\n" * 100 + error + "\n compilation terminated\n" + "more\n" * 100)
        assert text.splitlines()[1] == error
        assert text.endswith("Install Python's C headers (python3-dev, python3-devel).")

    def test_a_log_without_error_lines_shows_its_end(self):
        assert "last words" in horovod_build.explain("start\n" * 50 + "last words\n")

    def test_pip(self):
        log = "Looking in links: w\nERROR: No matching distribution found for mpi4py<5,>=4.0\n"
        assert "w does not contain it. Refill it" in explain_pip(log, "w")
        assert "the package index is reachable and has that version" in explain_pip(log, "")

    def test_progress_of_cmake(self):
        assert cmake_percent("[ 9%] Building\n[ 45%] Linking\n...") == "45 %"
        assert cmake_percent("nothing yet") == ""


class TestStamp:
    @pytest.fixture
    def venv(self, tmp_path):
        """Make an environment as set-up leaves it, as far as the stamp checks it."""
        (tmp_path / "pyproject.toml").write_text("dependencies = []\n")
        venv = tmp_path / ".venv"
        site = venv / "lib" / "python3.11" / "site-packages"
        executable(venv / "bin" / "python", "true")
        self.install_torch(site, "2.13.0+cpu")
        (site / "horovod").mkdir()
        (site / "horovod" / "metadata.json").write_text(json.dumps({"pytorch": "2.13.0+cpu"}))
        written = stamp.Stamp(
            choices=Choices().as_dict(),
            project=stamp.project_digest(tmp_path),
            versions=stamp.VERSIONS,
            torch_version="2.13.0+cpu",
            torch_folder=str(site / "torch"),
        )
        stamp.write(venv, written)
        return venv

    @staticmethod
    def install_torch(site: Path, version: str) -> None:
        (site / "torch").mkdir(parents=True, exist_ok=True)
        (site / "torch" / "version.py").write_text(f"__version__ = '{version}'\n")

    @staticmethod
    def why(venv: Path, choices: Choices | None = None) -> str:
        return stamp.why_stale(stamp.read(venv), venv.parent, venv, choices or Choices())

    def test_nothing_to_do(self, venv):
        assert self.why(venv) == ""

    def test_another_torch_was_installed(self, venv):
        self.install_torch(venv / "lib" / "python3.11" / "site-packages", "2.14.1+cu130")
        assert self.why(venv) == "torch was 2.13.0+cpu, is now 2.14.1+cu130"

    def test_horovod_for_another_torch(self, venv):
        (venv / "lib/python3.11/site-packages/horovod/metadata.json").write_text('{"pytorch": "2.12.0"}')
        assert self.why(venv) == "Horovod was built for torch 2.12.0, not 2.13.0+cpu"

    def test_other_choices(self, venv):
        assert self.why(venv, Choices(torch="system")) == "TORCH was '2.13.0', is now 'system'"

    def test_other_dependencies(self, venv):
        (venv.parent / "pyproject.toml").write_text("dependencies = ['more']\n")
        assert self.why(venv) == "the project's dependencies changed"

    def test_interrupted(self, venv):
        stamp.write(venv, stamp.Stamp(choices=Choices().as_dict()))
        assert self.why(venv) == "the last set-up did not finish"

    def test_broken(self, venv):
        (venv / "set-up.json").write_text('{"choices": {')
        assert self.why(venv) == "not set up yet"


class TestWheels:
    def test_everything_but_torch_and_horovod(self):
        names = wheels.requirements((ROOT / "pyproject.toml").read_text())
        assert any(name.startswith("mpi4py") for name in names)
        assert any(name.startswith("pytest") for name in names)
        assert not any(name.startswith(("torch", "horovod")) for name in names)
        assert not any(name.startswith("mkdocs") for name in names), "clusters do not build the site"

    def test_target(self):
        arguments = wheels.target_arguments("3.12", "aarch64")
        assert arguments[arguments.index("--python-version") + 1] == "3.12"
        assert "manylinux_2_28_aarch64" in arguments
        with pytest.raises(InputError, match=r"PYTHON_VERSION=3\.9: expected 3\.10 or newer"):
            wheels.target_arguments("3.9", "x86_64")
