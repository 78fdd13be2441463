"""The command `avvp`: one entry point over the table of stages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from avvp_dist import __version__
from avvp_dist.config.option import nearest
from avvp_dist.entry import run
from avvp_dist.errors import ConfigError
from avvp_dist.runtime.slurm import export_slurm_ranks
from avvp_dist.stages import STAGES, Stage, resolve


def main(argv: Sequence[str] | None = None) -> None:
    """Run `avvp STAGE ...`; without a stage print all of them.

    The process ends with the stage's exit code (`avvp_dist.errors` lists them).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # `deepspeed --module avvp_dist STAGE` puts its own option before the stage.
    own = [word for word in words[:1] if word.startswith("--local_rank")]
    words = words[len(own) :]
    if not words or words[0] in ("--help", "-h"):
        print(overview())
    elif words[0] == "--version":
        print(f"avvp {__version__}")
    else:
        run_stage(words[0], words[1:])


def run_stage(name: str, argv: Sequence[str] | None = None) -> None:
    """Run one stage with the words `argv` of its command line, by default the process's own.

    The process ends with the stage's exit code if that is not 0.
    """
    run(lambda: _run(name, sys.argv[1:] if argv is None else argv))


def overview() -> str:
    """The help text of `avvp`: every stage with its line of help."""
    width = max(map(len, STAGES))
    return "\n".join(
        [
            "usage: avvp STAGE [--config FILE] [--print-config] [KEY=VALUE ...]",
            "       avvp STAGE --help",
            "",
            "stages:",
            *(f"  {stage.name:{width}}  {stage.help}" for stage in STAGES.values()),
        ]
    )


def _run(name: str, argv: Sequence[str]) -> None:
    if name not in STAGES:
        raise ConfigError(
            f"unknown stage {name}, did you mean {nearest(name, list(STAGES))}?",
            remedy="avvp --help lists the stages",
        )
    stage = STAGES[name]
    if stage.config is None:
        stage.run(argv)
    elif stage.plan:
        _run_training(stage, stage.config, argv)
    else:
        from avvp_dist.config.command_line import parse

        stage.run(parse(stage.config, _description(stage), argv, prog=f"avvp {name}"))


def _run_training(stage: Stage, kind: type[object], argv: Sequence[str]) -> None:
    from avvp_dist.config.command_line import parse_training

    export_slurm_ranks()
    config, ranks = parse_training(kind, _description(stage), argv, prog=f"avvp {stage.name}")
    if ranks:
        resolve(stage.plan)(config, ranks)
    else:
        stage.run(config)


def _description(stage: Stage) -> str:
    return f"{stage.help}\n\n  {stage.example}"
