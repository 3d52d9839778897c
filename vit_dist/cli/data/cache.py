"""`vit-dist data cache`: what the cache of shards on this node holds, and emptying it. No torch."""

from __future__ import annotations

import time

from vit_dist.cli.data.options import out, parser
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import explained
from vit_dist.core.locks import LockHeldError
from vit_dist.core.node_cache import DIR_VARIABLE, of_machine
from vit_dist.core.places import check_local, local_option
from vit_dist.core.units import format_bytes, format_seconds

_DETAILS = f"""
A recipe's `data.cache: {{dir: DIR, size: 500 GB}}`, or `cache` of a cluster file, keeps what is read from a store on
the node's own disk. DIR left out is that of {DIR_VARIABLE}, which cluster files set.

--clear is safe while jobs run: they read from the store what is gone, and fill the cache again.
"""
_EXAMPLES = """
  vit-dist data cache /local/scratch
  vit-dist data cache /local/scratch --clear
"""


def main(argv: list[str]) -> int:
    """Print what a cache holds, or remove it all."""
    p = parser("cache", "Show what this node's cache of shards holds.", _DETAILS, _EXAMPLES.strip("\n"))
    p.add_argument("dir", nargs="?", type=local_option, metavar="DIR", help="as data.cache.dir names it")
    p.add_argument("--clear", action="store_true", help="remove all that it holds")
    args = p.parse_args(argv)

    from vit_dist.data.cache_files import find_folder
    from vit_dist.data.cache_ledger import Ledger, kept

    of_environment = of_machine()[0]
    if args.dir is None and not of_environment:
        raise ConfigError(f"give the directory of the cache; {DIR_VARIABLE} names none here")
    place = args.dir if args.dir is not None else check_local(of_environment, DIR_VARIABLE)
    folder = find_folder(place, "DIR" if args.dir is not None else DIR_VARIABLE)
    with explained(str(folder), "looked into"):
        chunks, _ = kept(folder)
    size = format_bytes(sum(chunk.num_bytes for chunk in chunks))
    shards = len({chunk.key for chunk in chunks})
    if args.clear:
        try:
            with explained(str(folder), "emptied"):
                Ledger(folder, 0, set).clear()
        except LockHeldError:
            raise DataError(f"{folder}: jobs write there without a pause; nothing was removed, try again") from None
        out(f"{folder}: removed {size} of {shards:,} shards\n")
        return 0
    out(f"{folder}: {size} of {shards:,} shards, in {len(chunks):,} files\n")
    if chunks:
        now = time.time()
        ages = [max(0.0, now - chunk.used_ns / 1e9) for chunk in chunks]
        out(f"last used between {format_seconds(min(ages))} and {format_seconds(max(ages))} ago\n")
    return 0
