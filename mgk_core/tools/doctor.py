"""Check whether this machine and this installation can do a run; each check comes with its fix."""

from __future__ import annotations

import importlib.metadata
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import psutil
from attrs import frozen

Status = Literal["ok", "warning", "error"]

GB = 10**9
NEEDED_PYTHON = (3, 11)
_REQUIREMENT = re.compile(
    r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"]([^'\"]+)['\"])?"
)


@frozen
class Check:
    """The result of one check. `mend`: how to fix it if it is not ok."""

    name: str
    status: Status
    text: str
    mend: str = ""


def examine(directory: Path, *, device: str = "auto") -> Iterator[Check]:
    """Yield all answers. directory: where runs would be written."""
    yield _python()
    yield from _guarded("torch", _torch)
    yield from _guarded("device", lambda: _device(device))
    yield from _guarded("smoke test", lambda: _smoke(device))
    yield from _libraries()
    yield from _guarded("threads", _threads)
    yield from _guarded("speeds", _speeds)
    yield from _guarded("plugins", _plugins)
    yield from _guarded("pipelines", _pipelines)
    yield _disk(directory)
    yield _memory()
    yield _files()


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Turn whatever a check raises into its answer: a doctor does not die of the illness."""
    from mgk_core.contract.errors import MgkError

    try:
        yield from check()
    except MgkError as error:
        yield Check(name, "error", str(error))
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        yield Check(
            name,
            "error",
            f"{type(error).__name__}: {error}",
            "reinstall mgk and its libraries in a fresh environment",
        )


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < NEEDED_PYTHON:
        return Check("Python", "error", version, "use Python 3.11 or newer")
    return Check("Python", "ok", f"{version} ({sys.executable})")


def _torch() -> Iterator[Check]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    yield Check(
        "torch",
        "ok",
        f"{torch.__version__}, {built}, {torch.backends.cpu.get_cpu_capability()}, {cores} cores",
    )


def _device(wanted: str) -> Iterator[Check]:
    import torch

    from mgk_core.model.device import pick_device

    device = pick_device(wanted)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        yield Check(
            "device",
            "ok",
            f"{device}: {properties.name}, {free / GB:.1f} of {total / GB:.1f} GB free",
        )
    elif torch.version.cuda is not None:
        yield Check(
            "device",
            "warning",
            f"{device}: torch has CUDA and sees no device",
            "check the driver with nvidia-smi",
        )
    else:
        yield Check("device", "ok", str(device))


def _smoke(wanted: str) -> Iterator[Check]:
    """Fit y = W x by two SGD steps and compare the result with the same steps by hand in float64."""
    import torch

    from mgk_core.model.device import pick_device

    device = pick_device(wanted)
    generator = torch.Generator().manual_seed(0)
    x, y, start = (
        torch.randn(s, generator=generator) for s in ((64, 16), (64, 8), (8, 16))
    )
    weight = torch.nn.Parameter(start.clone().to(device))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    expected = start.double()
    for _ in range(2):
        optimizer.zero_grad()
        loss = (x.to(device) @ weight.T - y.to(device)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        gap = x.double() @ expected.T - y.double()
        expected -= 0.1 * 2 * gap.T @ x.double() / gap.numel()
    error = float((weight.detach().cpu().double() - expected).norm() / expected.norm())
    said = f"matrix product, autograd and optimizer on {device}: relative error {error:.1e}"
    if error < 1e-3:  # TF32 keeps 10 bits; anything worse is broken
        yield Check("smoke test", "ok", said)
    else:
        yield Check(
            "smoke test",
            "error",
            said,
            "the device computes wrongly: check its driver and torch's build for it",
        )


def _threads() -> Iterator[Check]:
    """Report from which size of a base on all threads are used, as a run with nothing set would."""
    import torch

    from mgk_core.model.device import asked_threads
    from mgk_core.model.speeds import has, threads_from

    if asked := asked_threads():
        yield Check("threads", "ok", f"{asked}, as OMP_NUM_THREADS asks")
        return
    count = torch.get_num_threads()
    if count == 1:
        yield Check("threads", "ok", "1")
        return
    entries = threads_from(count)
    text = f"{count} for a base with a matrix of {entries:,} numbers or more, 1 for a smaller one"
    how = "measured" if has(f"threads-{count}") else "not measured: the machine is busy"
    yield Check("threads", "ok", f"{text} ({how})")


def _speeds() -> Iterator[Check]:
    """Report what the plugins' types measured of this machine."""
    from mgk_core.contract.progress import track
    from mgk_core.contract.specs import Measures
    from mgk_core.host.manager import load_plugins

    types: list[object] = [claim.cls for claim in load_plugins().registry]
    for cls in track([c for c in types if isinstance(c, Measures)], "measurements"):
        for name, text in cls.speeds().items():
            yield Check(name, "ok", text)


def requirements() -> Iterator[tuple[str, str, str | None]]:
    """Yield (library, version wanted, extra or None) of the installed distribution."""
    for text in importlib.metadata.requires("mgk") or ():
        found = _REQUIREMENT.match(text)
        if found and found[1] != "mgk":
            yield found[1], found[2].strip(), found[3]


def _libraries() -> Iterator[Check]:
    missing: dict[str, list[str]] = {}
    present = []
    for name, wanted, extra in requirements():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if extra is None:
                yield Check(
                    "libraries",
                    "error",
                    f"{name} is missing",
                    f"pip install '{name}{wanted}'",
                )
            else:
                missing.setdefault(extra, []).append(name)
            continue
        if not satisfies(version, wanted):
            yield Check(
                "libraries",
                "error",
                f"{name} {version}, {wanted} is needed",
                f"pip install '{name}{wanted}'",
            )
        present.append(f"{name} {version}")
    yield Check("libraries", "ok", ", ".join(dict.fromkeys(present)))
    for extra, names in missing.items():
        status: Status = "warning" if extra in ("hf", "gemma") else "ok"
        what = "the default pipeline needs it" if status == "warning" else "optional"
        yield Check(
            f"extra {extra}",
            status,
            f"{', '.join(names)} not installed; {what}",
            f"pip install 'mgk[{extra}]'",
        )


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version meets ``>=`` and ``==`` bounds, by its numbers; other bounds are not judged."""
    for bound in filter(None, (b.strip() for b in wanted.split(","))):
        if bound.startswith(">=") and _numbers(version) < _numbers(bound[2:]):
            return False
        if bound.startswith("==") and _numbers(version) != _numbers(bound[2:]):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(
        int(n) for n in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3]
    )


def _plugins() -> Iterator[Check]:
    from mgk_core.host.manager import load_plugins

    plugins = load_plugins()
    for info in plugins.broken:
        mend = f"fix or uninstall it, or run with --without-plugin {info.name}"
        yield Check(
            "plugins",
            "error",
            f"{info.name} of {info.distribution} {info.version}: {info.error}",
            mend,
        )
    whole = [i.name for i in plugins.infos if i.error is None]
    yield Check(
        "plugins",
        "ok" if whole else "error",
        ", ".join(whole) or "none",
        "" if whole else "reinstall mgk",
    )


def _pipelines() -> Iterator[Check]:
    from mgk_core.config.catalog import PIPELINES, entries
    from mgk_core.contract.errors import MgkError

    whole = []
    for entry in entries(PIPELINES):
        try:
            entry.load()
            whole.append(entry.name)
        except MgkError as error:
            yield Check(
                "pipelines", "error", str(error), "fix or uninstall its distribution"
            )
    yield Check(
        "pipelines",
        "ok" if whole else "warning",
        ", ".join(whole) or "none",
        "" if whole else "reinstall mgk",
    )


def _disk(directory: Path) -> Check:
    place = next(
        p for p in (directory.absolute(), *directory.absolute().parents) if p.exists()
    )
    free = shutil.disk_usage(place).free / GB
    text = f"{free:.1f} GB free at {place}"
    if not os.access(place, os.W_OK):
        return Check(
            "disk", "error", f"{place} cannot be written", "choose another --out"
        )
    if free < 1:
        return Check(
            "disk", "error", text, "free some space: the default run writes about 1 GB"
        )
    return Check(
        "disk",
        "warning" if free < 5 else "ok",
        text,
        "larger models need more" if free < 5 else "",
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    text = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    if memory.available < 2 * GB:
        return Check(
            "memory",
            "error",
            text,
            "close other programs: the default run needs up to 6 GB",
        )
    small = memory.available < 6 * GB
    return Check(
        "memory",
        "warning" if small else "ok",
        text,
        "the default run needs up to 6 GB" if small else "",
    )


def _files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 256:
        return Check(
            "open files", "warning", f"limit {soft}", "raise it: ulimit -n 1024"
        )
    return Check(
        "open files",
        "ok",
        "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft}",
    )
