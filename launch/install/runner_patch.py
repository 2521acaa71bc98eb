"""Patches for `horovodrun`, made to the installed package: nothing has to be compiled for them."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from launch.install.settings import HOROVOD_VERSION, SetupError

ADDED = tuple(Path(__file__).with_name(name) for name in ("supervise_mpirun.py", "horovod_hosts.py"))
"""Modules that become part of `horovod.runner`."""

_IMPORT = "from horovod.runner import horovod_hosts\n"
_GLOO_FAILED = "\n        exit_code, timestamp = value\n        if exit_code != 0:\n"
_EXECUTE = "        os.execve('/bin/sh', ['/bin/sh', '-c', mpirun_command], env)\n"
_SUPERVISE = (
    "        from horovod.runner.supervise_mpirun import supervise\n"
    "        supervise(mpirun_command, horovod_hosts.variables_of_mpirun(env, settings.hosts))\n"
)
_MPIRUN = "        'mpirun {basic_args} '\n"
_ANY_MPIRUN = "        '{mpirun} {basic_args} '\n"
_ARGUMENTS = "        .format(basic_args=basic_args,\n"
_PATH = "        .format(mpirun=horovod_hosts.path_of_mpirun(env),\n                basic_args=basic_args,\n"
_COMMAND_LINE = "def run_commandline():\n"
_BEFORE_RANKS = (
    "    from horovod.runner.supervise_mpirun import end_at_once_before_ranks_start\n"
    "    end_at_once_before_ranks_start()\n"
)
_OPTIONS = "'-l' if impi_or_mpich else '--allow-run-as-root --tag-output'"
_IS_MPICH = "        elif 'MPICH' in output:\n"
_LOCALHOST = "args.hosts = f'localhost:{args.num_proc}'\n"
_REMOTE = "    if len(remote_host_names) > 0:\n        if settings."
_NEEDS_SSH = (
    "    if remote_host_names and not horovod_hosts.started_by_slurm(remote_host_names):\n"
    "        if settings."
)
_OF_LSF = "    if lsf.LSFUtils.using_lsf():\n        return None\n"
_OF_SLURM = (
    "    if remote_host_names and not settings.nics and horovod_hosts.started_by_slurm(remote_host_names):\n"
    "        return None\n"
)


def patch_exit_code(text: str, name: str) -> str:
    """Make `horovodrun --gloo` exit with the failed rank's exit code, as `horovodrun` does with MPI.

    Unpatched, it raises its own error: it exits with 1 and buries the rank's message under a traceback.
    """
    return replace_once(text, _GLOO_FAILED, f"{_GLOO_FAILED}            raise SystemExit(exit_code)\n", name)


def patch_signals(text: str, name: str) -> str:
    """Make `horovodrun` pass signals on, so that the ranks save before they end; and watch links.

    Unpatched, it replaces itself by a shell that waits for mpirun. A signal ends that shell alone, and the
    ranks keep running. And mpirun would kill them two seconds after a SIGTERM.
    """
    return replace_once(text, _EXECUTE, _SUPERVISE, name)


def patch_start(text: str, name: str) -> str:
    """Make a signal to `horovodrun` end it with one line before its ranks start, which takes seconds."""
    return replace_once(text, _COMMAND_LINE, _COMMAND_LINE + _BEFORE_RANKS, name)


def patch_options(text: str, name: str) -> str:
    """Leave lines of output as they are.

    Unpatched, it has Open MPI tag every line with `[1,0]<stdout>:`; `--mpi-args=--tag-output` still does, and
    `--mpi-args=-l` with MPICH.
    """
    return replace_once(text, _OPTIONS, "'' if impi_or_mpich else '--allow-run-as-root'", name)


def patch_mpich(text: str, name: str) -> str:
    """Make `horovodrun` know MPICH, whose `mpirun --version` speaks of Hydra, its process manager.

    Unpatched, it looks for the name in capitals, which is there by chance, in the options of some builds.
    """
    known = "        elif 'MPICH' in output or 'HYDRA build details' in output:\n"
    return replace_once(text, _IS_MPICH, known, name)


def patch_path(text: str, name: str) -> str:
    """Start mpirun with its folder, where Open MPI then looks for its daemon on every host.

    Unpatched, ssh has to find the daemon, which takes `--mpi-args="--prefix <folder>"`.
    """
    text = replace_once(text, _MPIRUN, _ANY_MPIRUN, name)
    return replace_once(text, _ARGUMENTS, _PATH, name)


def patch_hosts(text: str, name: str) -> str:
    """Take hosts that nobody names from a Slurm job, and try ssh to no host that srun reaches.

    Unpatched, all ranks of a job of several nodes start on one, or none does: Open MPI takes a task for a
    slot.
    """
    named = "args.hosts = horovod_hosts.default_hosts(args.num_proc)\n"
    return replace_once(replace_once(text, _LOCALHOST, named, name), _REMOTE, _NEEDS_SSH, name)


def patch_interfaces(text: str, name: str) -> str:
    """Leave the choice of network interfaces to MPI and NCCL in a Slurm job, as Horovod does under LSF.

    Unpatched, it goes to every host by ssh.
    """
    return replace_once(text, _OF_LSF, _OF_LSF + _OF_SLURM, name)


def _import_hosts(text: str, before: str, name: str) -> str:
    return replace_once(text, before, _IMPORT + before, name)


def _mpi_run(text: str, name: str) -> str:
    for change in (patch_signals, patch_options, patch_mpich, patch_path):
        text = change(text, name)
    return _import_hosts(text, "from horovod.runner.common.util import env as", name)


def _launch(text: str, name: str) -> str:
    text = patch_hosts(patch_start(text, name), name)
    return _import_hosts(text, "from horovod.runner.common.util import config_parser", name)


def _driver_service(text: str, name: str) -> str:
    return _import_hosts(patch_interfaces(text, name), "from horovod.runner.common.util import codec", name)


CHANGES: dict[str, Callable[[str, str], str]] = {
    "runner/gloo_run.py": patch_exit_code,
    "runner/launch.py": _launch,
    "runner/mpi_run.py": _mpi_run,
    "runner/driver/driver_service.py": _driver_service,
}


def patch(package: Path) -> None:
    """Patch an installed `horovod` in place, as pip has left it."""
    changed = {
        package / name: change((package / name).read_text(encoding="utf-8"), name)
        for name, change in CHANGES.items()
    }
    for file in ADDED:
        shutil.copy(file, package / "runner")
    for file, text in changed.items():
        partial = file.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        shutil.copymode(file, partial)
        partial.replace(file)


def recipe() -> str:
    """Return a digest of these patches: a set-up that made others is out of date."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in (Path(__file__), *ADDED))).hexdigest()[:8]


def replace_once(text: str, old: str, new: str, name: str) -> str:
    """Return the text with a passage replaced.

    Raises:
        SetupError: The passage is not there exactly once: the text is not from the Horovod that is patched.
    """
    count = text.count(old)
    if count != 1:
        raise SetupError(
            f"{name} of Horovod's source contains '{old.strip()}' {count} times, expected once: this is not "
            f"the source of Horovod {HOROVOD_VERSION}. Does the folder of wheels have another?"
        )
    return text.replace(old, new)
