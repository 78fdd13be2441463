"""Import of official state dicts as our parsers: HAN's, and the paper's (`cross_modal`)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from avvp_dist.config import ParserConfig
from avvp_dist.errors import CheckpointError, first_line
from avvp_dist.models.export import build_parser, save_model
from avvp_dist.models.specification import ParserSpec
from avvp_dist.shards.schema import HAN_EXTRACTOR, LLP_CLASSES

FORMATS = ("han", "cross_modal")

_HEADS = {
    "fc_prob": "prob",
    "fc_frame_att": "frame_att",
    "fc_av_att": "modality_att",
    "fc_a": "embed.audio",
    "fc_v": "embed.visual",
    "fc_st": "embed.motion",
    "fc_fusion": "fuse_visual",
}
_GCAA = {
    "qx_linear": "query",
    "kx_linear": "key",
    "vx_linear": "value",
    "qc_linear": "query_context",
    "kc_linear": "key_context",
    "Vqx_linear": "query_gate",
    "Vqc_linear": "query_context_gate",
    "Vkx_linear": "key_gate",
    "Vkc_linear": "key_context_gate",
    "out": "out",
}
_DEAD = {
    "han": r"(audio|visual|cmt)_encoder\.|hat_encoder\.norm[12]\.",
    "cross_modal": r"cma_layer\.norm[12]\.",
}
"""Names of modules that the official codes build and never call, as patterns."""


def import_checkpoint(
    file: Path, format: str, out: Path, *, skip: bool = True, gcaa_first_snippet: bool = False
) -> None:
    """Export an official state dict as a parser, and print our name of each of its tensors.

    Args:
        file: a state dict written by `torch.save`; no objects are unpickled.
        format: `han` (Tian et al., ECCV 2020) or `cross_modal` (the paper's code).
        out: folder of the exported model.
        skip: for `cross_modal`: whether its model adds the skip connection, which the names of the
            tensors do not tell.
        gcaa_first_snippet: for `cross_modal`: keep the fault of the released GCAA, with which the
            weights were trained.

    Raises:
        CheckpointError: if the file is no state dict, or if tensors are missing, unexpected or of
            other shapes.
    """
    state = _read(file)
    config = _config(state, format, skip, gcaa_first_snippet)
    spec = ParserSpec(
        parser=config,
        dims={"audio": 128, "visual": 2048, "motion": 512},
        snippets=10,
        classes=list(LLP_CLASSES),
        extractor=HAN_EXTRACTOR,
        manifest="none",
    )
    own = build_parser(spec).state_dict()
    names = {name: _our_name(name, format, config) for name in state}
    unused = sorted(name for name, ours in names.items() if ours is None)
    loaded = {ours: state[name].float() for name, ours in names.items() if ours is not None}
    unexpected = sorted(n for n, ours in names.items() if ours is not None and ours not in own)
    missing = sorted(own.keys() - loaded.keys())
    reshaped = sorted(
        f"{name} {list(loaded[name].shape)} for {list(own[name].shape)}"
        for name in own.keys() & loaded.keys()
        if own[name].shape != loaded[name].shape
    )
    _print_table(names, unused, missing)
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{file} is no {format} state dict: missing {missing[:5]}, unexpected "
            f"{unexpected[:5]}, of other shape {reshaped[:5]}"
        )
    for name, value in own.items():
        loaded[name] = loaded[name].to(value.dtype)
    save_model(out, loaded, spec)
    print(f"{len(loaded)} tensors loaded, {len(unused)} dead ones left out\n{out}")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        state: object = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a file of another kind
        raise CheckpointError(
            f"{file} is no state dict of plain tensors: {first_line(error)}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{file} is no state dict: expected a mapping of names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _config(
    state: dict[str, Tensor], format: str, skip: bool, gcaa_first_snippet: bool
) -> ParserConfig:
    if format == "han":
        return ParserConfig(
            separate_self_attention=False,
            fusion="inputs",
            skip=False,
            attention="multihead",
            discriminator=False,
        )
    gcaa = "sa_layer_a.self_attn.qx_linear.weight" in state
    return ParserConfig(
        skip=skip,
        attention="gcaa" if gcaa else "multihead",
        gcaa_first_snippet=gcaa_first_snippet,
        discriminator=any(name.startswith("mod_classifier.") for name in state),
    )


def _our_name(name: str, format: str, config: ParserConfig) -> str | None:
    """Our name of an official tensor; None in a dead module; the name itself if unknown."""
    if re.match(_DEAD[format], name):
        return None
    module, _, rest = name.partition(".")
    if module in _HEADS:
        return f"{_HEADS[module]}.{rest}"
    if format == "han":
        return _layer(name, r"hat_encoder\.layers\.0", "self_layers.0")
    if module == "shared_fc":
        return f"shared.{rest}"
    if module in ("norm_a", "norm_v"):
        return f"skip_norms.{'av'.index(module[-1])}.{rest}" if config.skip else None
    if module == "mod_classifier":
        layer, _, last = rest.partition(".")
        number = {"fc1": 0, "norm1": 1, "fc2": 3, "norm2": 4, "fc3": 6}.get(layer)
        return f"discriminator.layers.{number}.{last}"
    if module in ("sa_layer_a", "sa_layer_v"):
        return _layer(name, module, f"self_layers.{'av'.index(module[-1])}")
    return _layer(name, r"cma_layer\.layers\.0", "cross_layer")


def _layer(name: str, theirs: str, ours: str) -> str:
    """Our name of a tensor in an attention layer; the name itself if unknown."""
    match = re.fullmatch(rf"{theirs}\.(self_attn|cm_attn|linear[12]|norm[12])\.(.+)", name)
    if match is None:
        return name
    part, rest = match.groups()
    if part not in ("self_attn", "cm_attn"):
        return f"{ours}.{part}.{rest}"
    attention = "own" if part == "self_attn" else "cross"
    inner, _, last = rest.partition(".")
    if inner in _GCAA:
        return f"{ours}.{attention}.{_GCAA[inner]}.{last}"
    return f"{ours}.{attention}.attention.{rest}"


def _print_table(names: dict[str, str | None], unused: list[str], missing: list[str]) -> None:
    width = max((len(name) for name in names), default=0)
    for name, ours in names.items():
        print(f"{name:{width}}  {ours or '- (dead module)'}")
    for name in missing:
        print(f"{'missing':{width}}  {name}")
