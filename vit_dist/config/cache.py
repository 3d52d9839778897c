"""What a recipe and a cluster file may say of the cache of shards on each node. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from vit_dist.core.registry import Config, LocalPath
from vit_dist.core.units import format_bytes, parse_bytes

LEAST_BYTES = 64 << 20
"""Less holds hardly more than what is read at one moment."""


def check_size(size: int) -> int:
    """The size of a cache, where it is one.

    Raises:
        ValueError: too small.
    """
    if 0 < size < LEAST_BYTES:
        raise ValueError(f"{format_bytes(size)} is too small; give {format_bytes(LEAST_BYTES)} or more, 0 B for none")
    return size


CacheSize = Annotated[int, BeforeValidator(parse_bytes), AfterValidator(check_size)]


class CacheConfig(Config):
    """Where a node keeps copies of the shards that are read from a store. Shards on this machine are never copied."""

    dir: LocalPath = Field(
        "", description="a directory of the node, such as /local/scratch, that is there; left out: the machine's"
    )
    size: CacheSize = Field(description="bytes that it may hold, such as 500 GB; 0 B: no cache, whatever the machine's")


class ClusterCacheConfig(CacheConfig):
    """The cache of a cluster's nodes, for every job whose recipe has none of its own."""

    @model_validator(mode="after")
    def _has_a_place(self) -> ClusterCacheConfig:
        if self.size and not self.dir:
            raise ValueError("dir: is missing; give a directory that every node has, such as /local/scratch")
        return self
