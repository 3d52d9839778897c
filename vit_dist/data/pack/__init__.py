"""Packing: any source of labelled images becomes globally shuffled WebDataset tars with a manifest. No torch at import.

The method. A *source* lists its images one after another into a *listing* on disk, a few dozen bytes each, found
by ordinal. The shuffle is not a sort but a function: place p of the packed set holds the image with ordinal
`permute(p, N, hash(seed))`, a keyed permutation of 0..N-1 in closed form. So it is global at every size, needs no
memory, and each shard is a pure function of listing, options and its number: shards are packed in any order, by any
number of processes or array tasks, again after a kill, and always come out with the same bytes.

Memory is flat: the listing is read with `pread`, a shard is written to disk as it grows. A shard is complete once its
done marker is written; the dataset is complete once `manifest.json` is.
"""
