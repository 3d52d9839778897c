"""`vit-dist run`: attempts of a run on this machine under a supervisor, until it is done."""

from __future__ import annotations

import argparse

from vit_dist.core.places import local_option, local_or_name

SUMMARY = "train a recipe on this machine, starting again after failures"

_EXAMPLES = """
`vit-dist train` is one attempt; this starts one after another until the run is done. Each attempt resumes from the
newest committed checkpoint. It ends when the run is done, when it is stopped (Ctrl-C, SIGTERM, or `echo stop >
RUN-DIR/request`), or when attempts in a row have saved nothing new.

examples:
  vit-dist run demo --nproc 2
  vit-dist run demo checkpoint.every=5min --give-up-after 5 --run-dir runs/long
  echo save > runs/long/request        a checkpoint now; training does not stop
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist run", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", help="a YAML file, or the name of one in configs/recipes"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last")
    parser.add_argument("--run-dir", type=local_option, metavar="DIR", help="default: runs/NAME-HASH")
    parser.add_argument("--nproc", metavar="N", type=int, default=1, help="ranks to start on this machine (default 1)")
    parser.add_argument(
        "--give-up-after", metavar="N", type=int, default=3, help="attempts in a row without progress (default 3)"
    )
    parser.add_argument("--profile", metavar="STEPS", default="", help="as of `vit-dist train`, in every attempt")
    args = parser.parse_intermixed_args(argv)

    from launcher.processes.ranks import run_local
    from launcher.supervise.local import supervise_local
    from vit_dist.cli.farewell import farewell
    from vit_dist.cli.train import check_before, default_run_dir
    from vit_dist.config.load import identity, load_recipe, sources_of
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.log import launcher_log
    from vit_dist.core.run import names
    from vit_dist.core.run.copies import bring_back
    from vit_dist.core.world import starts_ranks
    from vit_dist.train.profile import profile_options

    starts_ranks("run", args.nproc)
    if args.give_up_after < 1:
        raise ConfigError(f"--give-up-after={args.give_up_after}: at least 1 is needed")
    options = profile_options(args.profile)
    recipe = load_recipe(args.recipe, args.overrides)
    run_dir = args.run_dir or default_run_dir(recipe)
    data = check_before(recipe, run_dir, args.nproc, sources_of(args.recipe, args.overrides, recipe))
    # Before the ledger counts its attempts: of a run whose directory is lost it lies on the store.
    bring_back(run_dir, recipe.checkpoint.remote, {**identity(recipe), "fingerprint": data.fingerprint})
    with launcher_log(run_dir / names.LOGS / names.BATCH_LOG):
        code = supervise_local(
            recipe,
            run_dir,
            lambda r, d: run_local(r, d, nproc=args.nproc, options=options),
            give_up_after=args.give_up_after,
            devices=args.nproc,
        )
        farewell(run_dir, code, ["vit-dist", "run", *argv])
        return code
