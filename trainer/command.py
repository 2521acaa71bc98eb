"""What all commands share: Hydra's command line, checked; the world; one end for all ranks.

[1] the environment    before anything that reads it is imported
[2] the configuration  composed by Hydra and checked, without torch or MPI
[3] the world          MPI starts
[4] the job
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from trainer import config as schema
from trainer import environment
from trainer.config_check import check
from trainer.errors import UserError, suggest
from trainer.failure import fail
from trainer.sharing import compute_longer_at_a_time

if TYPE_CHECKING:
    from trainer.world import World

Job = Callable[[schema.Config, Any], None]

_CONF = Path(__file__).parent.parent / "conf"
_GROUPS: dict[str, dict[str, type]] = {
    "model": {
        "gpt": schema.GPTConfig,
        "simplenet": schema.SimpleNetConfig,
        "custom": schema.CustomModelConfig,
    },
    "data": {"text": schema.TextConfig, "binary": schema.BinaryConfig, "custom": schema.CustomDataConfig},
    "optimizer": {
        "adamw": schema.AdamWConfig,
        "sgd": schema.SGDConfig,
        "custom": schema.CustomOptimizerConfig,
    },
}


def run_command(job: Job, *, with_ranks: bool = True) -> None:
    """Run a job on every rank with the configuration of the command line; end the process.

    Args:
        job: What to run.
        with_ranks: Whether it needs the other ranks; else MPI is not started, and the job gets no world.

    Exit codes: 0 done; 2 the user's input is wrong; 1 anything else that failed; 130 interrupted.
    """
    try:
        environment.prepare()  # [1]
        if environment.shares_cores():
            compute_longer_at_a_time()
        environment.keep_freed_memory()
        _register()
        for config in _compose():  # [2]
            job(config, _world() if with_ranks else None)  # [3] [4]
    except SystemExit:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        fail(_explain(error))
    except BaseException as error:
        fail(error)


def _compose() -> list[schema.Config]:
    """Return the configuration that the command line asks for, or several with Hydra's --multirun.

    They are checked, and the jobs run, after Hydra has returned, so that errors are told in our words only.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be told in our words
    composed: list[tuple[DictConfig, int | None]] = []

    @hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
    def collect(node: DictConfig) -> None:
        of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        composed.append((node, HydraConfig.get().job.num if of_sweep else None))

    _only_rank_0_speaks(collect)
    return [_checked(*job) for job in composed]


def _only_rank_0_speaks(collect: Callable[[], None]) -> None:
    """Let Hydra read the command line and answer `--help` or `--cfg`, once for all ranks.

    Raises:
        UserError: It knows no such option; it would print its usage on every rank.
    """
    complaint = io.StringIO()
    answer = sys.stdout if environment.rank() == 0 else io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(answer):
            collect()
    except SystemExit as end:
        if end.code:
            raise UserError(complaint.getvalue().strip().splitlines()[-1].removeprefix(": ")) from None
        raise


def _checked(node: DictConfig, number: int | None) -> schema.Config:
    """Return a composed configuration, checked; the runs of a sweep get folders by their number."""
    config = typed(node)
    check(config)
    if number is not None:
        config.run.dir = str(Path(config.run.dir) / str(number))
    return config


def typed(composed: DictConfig) -> schema.Config:
    """Return the composed configuration as plain dataclasses.

    Raises:
        UserError: A key was added that the schema does not have, or an entry of a list is wrong.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, schema.Config)
    _refuse_unknown(config, "")
    groups = config.optimizer.groups
    config.optimizer.groups = [_group(entry, f"optimizer.groups.{i}") for i, entry in enumerate(groups)]
    return config


def _group(entry: Any, key: str) -> schema.GroupConfig:
    """Return an entry of a list as what it must be; in a typed list, OmegaConf would not say which is wrong.

    Raises:
        UserError: It is something else, naming the entry's key.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{key}={entry} must have keys, such as {{match: embedding, lr: 1e-4}}")
    names = [field.name for field in fields(schema.GroupConfig)]
    for name in entry:
        if name not in names:
            raise UserError(f"there is no key {key}.{name}{suggest(name, names)}")
    try:
        group = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema.GroupConfig), entry))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}.{_explain(error)}") from None
    assert isinstance(group, schema.GroupConfig)
    return group


@lru_cache(maxsize=1)
def _world() -> "World":
    """Start MPI, once a process: a sweep's runs share it."""
    from trainer.world import World  # noqa: PLC0415  (imports torch: not before the configuration is right)

    return World()


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Return when the run started, one and the same text on every rank."""
    now = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    if not environment.launched():
        return now
    stamp: str = _world().all_gather_objects(now)[0]
    return stamp


def _cache(kind: str) -> str:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(root) / "hybrid-trainer" / kind)


def _register() -> None:
    """Tell Hydra the schema, and what `${stamp:}` and `${cache:...}` mean."""
    store = ConfigStore.instance()
    store.store(name="schema", node=schema.Config)
    for group, nodes in _GROUPS.items():
        for name, node in nodes.items():
            store.store(group=group, name=f"{name}_schema", node=node)
    OmegaConf.register_new_resolver("stamp", _stamp, replace=True)
    OmegaConf.register_new_resolver("cache", _cache, replace=True)


def _refuse_unknown(node: Any, prefix: str) -> None:
    """Refuse keys that `+key=value` added: nothing would read them."""
    names = [field.name for field in fields(node)]
    for name, value in vars(node).items():
        if name not in names:
            raise UserError(f"there is no key {prefix}{name}{suggest(name, names)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


def _explain(error: Exception) -> UserError:
    """Say in one line what Hydra says in many: the key, what is wrong with it, and what is near."""
    if isinstance(error, MissingConfigException):
        return _explain_choice(error)
    inner = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(inner, "full_key", None)
    first_line = str(inner).strip().splitlines()[0]
    if not key:
        return UserError(f"the command line is not understood: {first_line}")
    if "not in" in first_line:
        asked = next((given for given in sys.argv[1:] if given.lstrip("+~").startswith(key)), key)
        asked = asked.lstrip("+~").partition("=")[0]
        return UserError(f"there is no key {asked}{suggest(asked, _known_keys())}")
    if "missing mandatory value" in first_line.lower():
        return UserError(f"{key} has no value: give {key}=...")
    if isinstance(inner, InterpolationKeyError):
        missing = first_line.split("'")[1]
        return UserError(f"{key} follows {missing}, which this configuration has not: give {key}=...")
    return UserError(
        f"{key}: {first_line}" + (f" Give {key}=[...]" if "not a ListConfig" in first_line else "")
    )


def _explain_choice(error: MissingConfigException) -> UserError:
    missing = str(error.missing_cfg_file or "")
    group, _, choice = missing.rpartition("/")
    options = sorted(option for option in error.options or () if not option.endswith("_schema"))
    if not options:
        options = sorted(path.stem for path in (_CONF / group).glob("*.yaml"))
    return UserError(f"{group}={choice} is not one of {', '.join(options)}{suggest(choice, options)}")


def _known_keys() -> list[str]:
    """Return every dotted key, of all choices of every group."""
    keys = list(schema.flat(OmegaConf.to_container(OmegaConf.structured(schema.Config))))
    for group, nodes in _GROUPS.items():
        for node in nodes.values():
            keys += schema.flat(OmegaConf.to_container(OmegaConf.structured(node)), f"{group}.")
    return keys
