"""The backbone of a saved file: described there, loaded from the description, and recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl.networks.backbones import Backbone, load_backbone
from mtl.networks.backbones.identity import differences, differing_answers
from mtl.networks.backbones.saved_arguments import relative_to, saved_arguments
from mtl.tools.json_files import check_fields, fits


def relocated(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A :meth:`Backbone.spec` for a file in ``folder``: paths inside it are relative, so that it can be moved."""
    is_folder = Path(spec["load"]["name"]).is_dir()
    return spec | {"load": relative_to(spec["load"], folder), "is_folder": is_folder}


def saved_backbone(
    file: Path,
    saved: dict[str, Any],
    given: str | Path | Backbone | None,
    checkpoint: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """The backbone that a file was made for, recognised: the caller's, or else loaded as the file says.

    Args:
        saved: what :meth:`Backbone.spec` said when it was saved.
        given: a loaded one; or a name or folder to load with the saved arguments; None for the saved one.
        checkpoint, trust_remote_code: for one that is loaded here, see :func:`mtl.load_backbone`.

    Raises:
        FileNotFoundError: what the file refers to is not there.
        ValueError: it is another network, or arguments for loading came with a loaded one.
    """
    if not isinstance(given, Backbone):
        given = _load(file, saved, given, checkpoint, trust_remote_code)
    elif checkpoint is not None or trust_remote_code:
        raise ValueError(
            "checkpoint= and trust_remote_code= are for loading a backbone, and backbone= is loaded already"
        )
    check_backbone(file, saved, given)
    return given


def _load(
    file: Path, saved: dict[str, Any], name: str | Path | None, checkpoint: str | Path | None, trust_remote_code: bool
) -> Backbone:
    """The backbone that a file describes, with the caller's own name or checkpoint in the place of the saved one."""
    given = {"name": None if name is None else str(Path(name)), "checkpoint": checkpoint and str(Path(checkpoint))}
    given = {k: str(Path(v).absolute()) if Path(v).exists() else v for k, v in given.items() if v}
    load = saved_arguments(saved["load"] | given, file, trust_remote_code)
    if saved.get("is_folder") and name is None and not Path(load["name"]).is_dir():
        raise FileNotFoundError(
            f"{file} was trained on the network in the folder {load['name']!r}, which is not there; pass backbone=, "
            "its folder or name"
        )
    backbone = load_backbone(**load)
    then, now = _poolings(saved, backbone)
    return backbone if then == now else load_backbone(**{**load, "pooling": then})


def _poolings(saved: dict[str, Any], backbone: Backbone) -> tuple[str | None, str | None]:
    """What version 0.1.0 made of the argument ``pooling`` that it saved, and the pooling of the backbone."""
    now = backbone.adapter.reading(backbone.model).get("pooling")
    if "weights" in saved:  # by a later version, which says the pooling itself
        return now, now
    return backbone.adapter.former_pooling(backbone.model, saved["load"].get("pooling")) or now, now


def _differing_answers(file: Path, saved: dict[str, Any], now: dict[str, Any], backbone: Backbone) -> list[str]:
    """Of a backbone that has the same weights."""
    if "answers" not in saved:
        return []
    check_fields(saved, file, {"answers.example": str, "answers.features": list})
    if not fits(saved["answers"]["features"], list[float]):
        raise ValueError(f"{file} has 'answers.features' that are not all numbers: it is damaged")
    dtypes = {saved["features"]["dtype"], now["features"]["dtype"]}
    exactly = len(dtypes) == 1 and dtypes <= {"float32", "float64"}
    return differing_answers(saved["answers"], backbone.answers(), exactly)


def check_backbone(file: Path, saved: dict[str, Any], backbone: Backbone) -> None:
    """Refuse a backbone whose features are not those that a file was made for.

    Args:
        saved: what :meth:`Backbone.spec` said when it was saved.

    Raises:
        ValueError: one line, with each difference.
    """
    if "weights" in saved:
        fields = {"weights": dict, "width": int, "features.dtype": str, "features.sites": list}
        check_fields(saved, file, fields)
        now = backbone.identity()
        changed = differences(saved, now) or _differing_answers(file, saved, now, backbone)
    else:  # by version 0.1.0, which hashed a sample of the weights
        now = {"fingerprint": backbone.former_fingerprint(), "modulation_width": backbone.modulation_width}
        changed = [f"{k}: {saved[k]} there, {now[k]} now" for k in now if saved[k] != now[k]]
        then, pooling = _poolings(saved, backbone)
        changed += [f"pooling: {then!r} there, {pooling!r} now"] if then != pooling else []
    if changed:
        raise ValueError(
            f"{file} is for the backbone {saved['load']['name']!r}, and {backbone.name!r} differs from it "
            f"({'; '.join(changed)}); load that backbone with the same weights and arguments, or train or "
            "adapt on this one"
        )


def without_places(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its network, with names in place of paths, which others have not and need not know.

    Who loads such a file passes ``backbone=`` or ``checkpoint=``, and is told so.
    """
    load: dict[str, Any] = spec["load"]
    kept = {k: Path(load[k]).name for k in ("checkpoint",) if load.get(k)}
    kept |= {"name": Path(load["name"]).name} if spec.get("is_folder") else {}
    return dict(spec) | {"load": load | kept}
