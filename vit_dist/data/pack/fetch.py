"""Read the bytes of the images that are to be packed. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vit_dist.core.errors import DataError
from vit_dist.core.files import is_remote, join_url
from vit_dist.data.pack.items import Item
from vit_dist.data.ranges import RangeReader

_FETCHES_IN_FLIGHT = 16
# Some six seconds without a byte. Lists of URLs from the web name many servers that are gone for good, and such an
# image is listed as unreadable, to be tried again when the command is.
_TRIES = 6


class Fetcher:
    """Reads the bytes of items: files, parts of files, or URLs, the last several at a time."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._reader = RangeReader(tries=_TRIES)

    def fetch_all(self, items: Iterable[Item]) -> Iterator[tuple[Item, bytes | DataError]]:
        """Items with their bytes, or with the error in their place, in the order given."""
        iterator = iter(items)
        first = next(iterator, None)
        if first is None:
            return
        items = itertools.chain([first], iterator)
        if not self._is_remote(first):
            for item in items:
                yield item, self._try(item)
            return
        with ThreadPoolExecutor(_FETCHES_IN_FLIGHT, thread_name_prefix="fetch") as pool:
            waiting: list[tuple[Item, Future[bytes | DataError]]] = []
            for item in items:
                waiting.append((item, pool.submit(self._try, item)))
                if len(waiting) >= 2 * _FETCHES_IN_FLIGHT:
                    done, future = waiting.pop(0)
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _try(self, item: Item) -> bytes | DataError:
        try:
            url = join_url(self.base, item.url)
            if item.offset < 0:
                return self._reader.read_all(url)
            return bytes(self._reader.read(url, item.offset, item.offset + item.num_bytes))
        except DataError as error:
            return error

    def _is_remote(self, item: Item) -> bool:
        try:
            return is_remote(join_url(self.base, item.url))
        except DataError:
            # Told of this item when its turn comes.
            return False

    def close(self) -> None:
        """Close what it holds open, and give up what waits."""
        self._reader.close()
