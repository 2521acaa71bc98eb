"""From the command line to checked configurations, through Hydra, without torch or MPI.

Hydra's own failures are reported in our words: the key, what is wrong with it, and what is near.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from trainer.config import model_folder, schema
from trainer.config.check import check
from trainer.config.from_run import Saved, with_choices
from trainer.config.quoting import quoting_hint
from trainer.config.registry import GROUPS, choices
from trainer.distributed import environment
from trainer.errors import UserError, suggest

ComposeError = (HydraException, OmegaConfBaseException)


@dataclass(frozen=True)
class Composed:
    """What a command line asks for.

    Attributes:
        configs: The configuration of every run, checked; several with Hydra's --multirun.
        sweep: Hydra's record of a sweep, for `multirun.yaml`; None where there is one run.
    """

    configs: Sequence[schema.Config]
    sweep: str | None = None


def conf_folder() -> Path:
    """Return the folder of the configuration's files: inside an installed wheel, beside a checkout."""
    package = Path(str(files("trainer")))
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose(prepare: Callable[[schema.Config], None] = lambda _: None, *, from_run: bool = False) -> Composed:
    """Return what the command line asks for.

    The configurations are checked, and the jobs run, after Hydra has returned, so that errors are reported
    in our words only.

    Args:
        prepare: Called with each configuration before it is checked.
        from_run: Whether the configuration is that of the run which `run.dir` or `checkpoint.resume` names.

    Raises:
        UserError: A value is wrong, or there is no such run.
        HydraException, OmegaConfBaseException: The command line is; see `explain`.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be reported in our words
    sys.argv[1:] = [_as_named_now(word) for word in sys.argv[1:]]
    saved = Saved.of(sys.argv[1:]) if from_run else None
    if saved is not None:
        sys.argv[1:] = with_choices(sys.argv[1:], saved)
    nodes: list[DictConfig] = []
    of_sweep = False

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def collect(node: DictConfig) -> None:
        nonlocal of_sweep
        of_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if saved is not None:
            saved.put_into(node)
        nodes.append(node)

    with tempfile.TemporaryDirectory() as scratch:  # each rank's own: no folder of the run exists yet
        register(scratch)
        with _composing_once():
            _only_rank_0_speaks(collect)
        record = (Path(scratch) / "multirun.yaml").read_text() if of_sweep else None
    configs = [typed(node) for node in nodes]
    for config in configs:
        prepare(config)
        check(config)
    return Composed(configs, record)


@contextlib.contextmanager
def _composing_once() -> Iterator[None]:
    """Keep Hydra from composing everything twice: at first only to read `hydra.mode`, which is not set."""
    original = Hydra.get_mode
    if not any(word.lstrip("+~").startswith("hydra.mode") for word in sys.argv[1:]):
        Hydra.get_mode = lambda *_args, **_options: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = original  # type: ignore[method-assign]


# Keys of earlier versions, which scripts may still give.
_RENAMED = {"optimizer.rate.": "optimizer.lr_schedule."}


def _as_named_now(word: str) -> str:
    """Return an override with the key that it has today."""
    signs = word[: len(word) - len(word.lstrip("+~"))]
    for old, new in _RENAMED.items():
        if word[len(signs) :].startswith(old):
            return f"{signs}{new}{word[len(signs) + len(old) :]}"
    return word


def _only_rank_0_speaks(collect: Callable[[], None]) -> None:
    """Let Hydra read the command line and answer `--help` or `--cfg`, once for all ranks.

    Raises:
        UserError: Hydra knows no such option, and would print its usage on every rank; or no such override.
    """
    complaint = io.StringIO()
    answer = sys.stdout if environment.rank() == 0 else io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(answer):
            collect()
    except SystemExit as end:
        if end.code:
            last_line = complaint.getvalue().strip().splitlines()[-1]
            raise UserError(_explain_usage(last_line.rpartition("error: ")[2])) from None
        raise
    except ValueError as error:
        raise UserError(f"the command line is not understood: {error}") from error


def _explain_usage(complaint: str) -> str:
    """Add the remedy for overrides on both sides of an option, which argparse does not read."""
    refused, _, words = complaint.partition("unrecognized arguments: ")
    if refused or not words or any(word.startswith("-") for word in words.split()):
        return complaint
    return f"{complaint}: put options such as --multirun before or after all overrides"


def register(scratch: str = ".") -> None:
    """Register the schema and the choices with Hydra, and what `${cache:...}` and `${scratch:}` mean.

    A choice needs no file in `conf/`. One that has a file takes its schema from the group `schema` there.

    Args:
        scratch: Where Hydra writes its record of a sweep.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=schema.Config)
    for group in GROUPS:
        for name, choice in choices(group).items():
            store.store(group=f"schema/{group}", name=name, node=choice.schema)
            if not (conf_folder() / group / f"{name}.yaml").is_file():
                store.store(group=group, name=name, node=choice.schema)
    OmegaConf.register_new_resolver("cache", _cache, replace=True)
    model_folder.register(OmegaConf.register_new_resolver)
    OmegaConf.register_new_resolver("scratch", lambda: scratch, replace=True)


def _cache(kind: str) -> str:
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in many containers
        raise UserError(
            f"there is no home folder for the cache of {kind}: give data.cache=FOLDER, or set HOME"
        ) from None
    return str(Path(root) / "hybrid-trainer" / kind)


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
        raise UserError(f"{key}.{explain(error)}") from None
    assert isinstance(group, schema.GroupConfig)
    return group


def _refuse_unknown(node: Any, prefix: str) -> None:
    """Refuse keys that `+key=value` added: nothing would read them."""
    names = [field.name for field in fields(node)]
    for name, value in vars(node).items():
        if name not in names:
            raise UserError(f"there is no key {prefix}{name}{suggest(name, names)}")
        if is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


def explain(error: Exception) -> UserError:
    """Say in one line what Hydra says in many: the key, what is wrong with it, and what is near."""
    if isinstance(error, MissingConfigException):
        return _explain_choice(error)
    return _ours(error) or _explain_other(error)


def _ours(error: BaseException) -> UserError | None:
    """Return the error of ours that is behind one of OmegaConf's, such as that of `${cache:...}`."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _explain_other(error: Exception) -> UserError:
    inner = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(inner, "full_key", None)
    first_line = str(inner).strip().splitlines()[0]
    if not key:
        return _explain_grammar(error, first_line)
    if "not in" in first_line:
        asked = _asked(key) or key
        return UserError(f"there is no key {asked}{suggest(asked, known_keys())}")
    if "missing mandatory value" in first_line.lower():
        return UserError(f"{key} has no value: give {key}=...")
    if isinstance(inner, InterpolationKeyError):
        missing = first_line.split("'")[1]
        return UserError(
            f"{key} follows {missing}, which this configuration has not: give {key}=...{_recipe_hint()}"
        )
    return UserError(
        f"{key}: {first_line}" + (f" Give {key}=[...]" if "not a ListConfig" in first_line else "")
    )


def _explain_grammar(error: Exception, complaint: str) -> UserError:
    """Say how to write what the grammar of overrides does not take."""
    hint = None
    if isinstance(error, HydraException):
        sweep = bool({"-m", "--multirun"} & set(sys.argv[1:]))
        hint = quoting_hint(sys.argv[1:], complaint, sweep=sweep)
    return UserError(f"the command line is not understood: {hint or complaint}")


def _asked(prefix: str) -> str | None:
    """Return the key of the first override on the command line that begins so."""
    given = (word.lstrip("+~") for word in sys.argv[1:])
    return next((word.partition("=")[0] for word in given if word.startswith(prefix)), None)


def _recipe_hint() -> str:
    """Return a pointer to the recipe of the model that the command line asks for, if there is one."""
    names = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("model=")]
    recipes = [name for name in names if (conf_folder() / "experiment" / f"{name}.yaml").is_file()]
    return "".join(f", or take the recipe experiment={name}" for name in recipes)


def _explain_choice(error: MissingConfigException) -> UserError:
    missing = str(error.missing_cfg_file or "")
    group, _, choice = missing.rpartition("/")
    options = sorted(error.options or ())
    if not options:
        options = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
    return UserError(f"{group}={choice} is not one of {', '.join(options)}{suggest(choice, options)}")


def known_keys() -> list[str]:
    """Return every dotted key, of all choices of every group."""
    keys = list(schema.flat(OmegaConf.to_container(OmegaConf.structured(schema.Config))))
    for group in GROUPS:
        for choice in choices(group).values():
            node = OmegaConf.to_container(OmegaConf.structured(choice.schema))
            keys += schema.flat(node, f"{group}.")
    return keys
