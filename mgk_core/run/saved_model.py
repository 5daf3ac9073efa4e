"""Comparing a saved model, tensor by tensor, with the weights that it must contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import define, field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import StoreError
from mgk_core.model.digest import combined_digest, tensor_digest


@define
class SavedModel:
    """What a directory's safetensors files contain.

    digests: tensor name → digest. compared: tensors with the dtype and shape of the model's tensor
    of that name, or with the bits of another one. wrong: those of them that differ. The rest is
    saved in another form (packed or cast) and cannot be compared.
    """

    digests: dict[str, str] = field(factory=dict)
    compared: int = 0
    wrong: list[str] = field(factory=list)

    @property
    def digest(self) -> str:
        """The digest that the ledger would record of these very tensors."""
        return combined_digest(self.digests)

    def check(self, directory: Path) -> None:
        """Refuse a model with a wrong tensor.

        :raises StoreError: names the first of them
        """
        if self.wrong:
            more = f" and {len(self.wrong) - 1} more" if len(self.wrong) > 1 else ""
            raise StoreError(
                f"{directory}: the saved weights are not those that were merged: {self.wrong[0]}{more}"
                " differs from the ledger's digest; the plugin that saves this base wrote something"
                " else"
            )


def compare_saved(
    directory: Path, model: nn.Module, digests: Mapping[str, str]
) -> SavedModel:
    """Compare a saved model with the digests that the model's tensors must have.

    :param digests: name → digest of the base's tensors; ``model`` gives their dtypes and shapes
    """
    saved, known = SavedModel(), set(digests.values())
    tensors = base_state_dict(model)
    for name, tensor in read_saved(directory):
        found = saved.digests[name] = tensor_digest(tensor)
        if name in digests and _same_form(tensor, tensors[name]):
            saved.compared += 1
            if found != digests[name]:
                saved.wrong.append(name)
        elif found in known:  # under the name that the format uses
            saved.compared += 1
    return saved


def saved_digest(directory: Path) -> str:
    """Return the digest of a saved model's tensors, without the model."""
    return combined_digest(
        {name: tensor_digest(t) for name, t in read_saved(directory)}
    )


def read_saved(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of all safetensors files in a directory, one at a time.

    :raises StoreError: a file cannot be read
    """
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is not a mapping
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path}: cannot be read as safetensors: {error}"
            ) from None


def _same_form(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape
