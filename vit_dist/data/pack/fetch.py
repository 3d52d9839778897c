"""Read the bytes of the images that are to be packed. No torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vit_dist.core.errors import DataError
from vit_dist.core.files import explained, file_system, is_remote, join_url, local_path, read_bytes, redact
from vit_dist.data.pack.items import Item

_FETCHES_IN_FLIGHT = 16
_FETCH_ATTEMPTS = 3


class Fetcher:
    """Reads the bytes of items: files, parts of files, or URLs, the last several at a time."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._files: dict[str, int] = {}

    def fetch_all(self, items: Iterable[Item]) -> Iterator[tuple[Item, bytes | DataError]]:
        """Items with their bytes, or with the error in their place, in the order given."""
        iterator = iter(items)
        first = next(iterator, None)
        if first is None:
            return
        items = itertools.chain([first], iterator)
        if not is_remote(join_url(self.base, first.url)):
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
        url = join_url(self.base, item.url)
        attempts = _FETCH_ATTEMPTS if is_remote(url) else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._fetch(url, item)
            except DataError as error:
                # What is not there will not come; a store that stumbles may answer the next time.
                if attempt == attempts or "no such file" in str(error):
                    return error
        raise AssertionError

    def _fetch(self, url: str, item: Item) -> bytes:
        if item.offset < 0:
            return read_bytes(url)
        with explained(url, "read"):
            if is_remote(url):
                system, path = file_system(url)
                content = bytes(system.cat_file(path, start=item.offset, end=item.offset + item.num_bytes))
            else:
                if url not in self._files:
                    # Open files are limited, and items come in random order: of many tars any may be the next one.
                    if len(self._files) >= 256:
                        self.close()
                    self._files[url] = os.open(local_path(url), os.O_RDONLY)
                content = os.pread(self._files[url], item.num_bytes, item.offset)
        if len(content) != item.num_bytes:
            raise DataError(
                f"{redact(url)}: ends before byte {item.offset + item.num_bytes}; it changed while it was read"
            )
        return content

    def close(self) -> None:
        """Close the files it holds open."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
