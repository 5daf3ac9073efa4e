"""The PEFT library behind one door: which tuner a type means, and its configuration."""

from __future__ import annotations

import dataclasses
import logging
from importlib.util import find_spec
from typing import Any

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError, nearest
from mgk_peft.spec import PeftSpec

_REFUSED = {
    "ADALORA": "it moves ranks between layers from inside PEFT's own training loop, and without that is plain SVD-LoRA",
    "POLY": "which of its skills act depends on the batch's task ids, so no single weight stands for it",
    "XLORA": "how much each of its adapters counts depends on the input, so no single weight stands for it",
}
_HERE = {
    "target_modules": "use the adapter's key targets",
    "exclude_modules": "use the adapter's key exclude",
    "layers_to_transform": "name the layers in the adapter's key targets",
    "layers_pattern": "name the layers in the adapter's key targets",
    "peft_type": "set by the adapter's key type",
    "inference_mode": "mgk trains what it attaches",
    "modules_to_save": "mgk trains the adapter alone, the base is frozen",
    "trainable_token_indices": "mgk trains the adapter alone, the base is frozen",
    "layer_replication": "it changes the model, not only its weights",
    "target_parameters": "use type = 'lora', which adapts plain parameters",
    "auto_mapping": "PEFT's own files need it, mgk fills it in",
    "base_model_name_or_path": "PEFT's own files need it, mgk fills it in",
    "revision": "PEFT's own files need it, mgk fills it in",
    "peft_version": "PEFT's own files need it, mgk fills it in",
    "task_type": "it has no effect on the tuner",
}


@frozen
class Tuner:
    """One of PEFT's tuners. name: as in PEFT's mapping. config, model: its classes."""

    name: str
    config: type[Any]
    model: type[Any]


def find_tuner(type_: str) -> Tuner:
    """Return what ``peft:NAME`` means; names are case-insensitive.

    :raises EnvironmentFault: PEFT is not installed
    :raises InputError: there is no such tuner, or it cannot be merged
    """
    if find_spec("peft") is None:
        raise EnvironmentFault(
            f"adapter type {type_!r} needs the PEFT library: pip install 'mgk[peft]'"
        )
    # PEFT imports bitsandbytes, which warns that an optional kernel from the hub is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    configs = {kind.value: cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    models = {kind.value: cls for kind, cls in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    name = type_.partition(":")[2].upper()
    able = sorted(
        n
        for n, cls in models.items()
        if n in configs and issubclass(cls, BaseTuner) and n not in _REFUSED
    )
    if name in able:
        return Tuner(name, configs[name], models[name])
    if name in _REFUSED:
        raise InputError(f"adapter type {type_!r} cannot be merged: {_REFUSED[name]}")
    if name in configs:
        raise InputError(
            f"adapter type {type_!r} cannot be merged: it changes the model's inputs or its attention, not its weights;"
            f" these can: {', '.join(able)}"
        )
    raise InputError(
        f"unknown adapter type {type_!r}: PEFT has no tuner {name!r}{nearest(name, able)}"
    )


def make_config(spec: PeftSpec, target_modules: str) -> Any:
    """Return PEFT's configuration object for a spec. target_modules: a regular expression.

    :raises InputError: PEFT has no such option, refuses its value, or mgk decides it elsewhere
    """
    tuner = find_tuner(spec.type)
    known = {f.name for f in dataclasses.fields(tuner.config) if f.init}
    for key, value in spec.options.items():
        if key in _HERE:
            raise InputError(f"options.{key}: {_HERE[key]}")
        if key not in known:
            raise InputError(
                f"options.{key}: {tuner.config.__name__} has no such field{nearest(key, known - set(_HERE))}"
            )
        if key == "bias" and value != "none":
            raise InputError(
                f"options.bias: expected 'none', got {value!r}: the base's own biases stay frozen"
            )
    options = dict(spec.options)
    if "feedforward_modules" in known:
        options.setdefault(
            "feedforward_modules", []
        )  # IA3 would look the model's name up in a table of its own
    try:
        return tuner.config(target_modules=target_modules, **options)
    except (
        ValueError,
        TypeError,
        ImportError,
        NotImplementedError,
        AttributeError,
    ) as error:
        raise InputError(
            f"options: {tuner.config.__name__} refuses them: {error}"
        ) from error
