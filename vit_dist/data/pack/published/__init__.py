"""Sets as their makers publish them: archives with the labels in files of their own. No torch.

kinds.py         the kinds of source, and which of them a folder or a file is
files.py         files by their paths, in folders and in archives
imagenet.py      ILSVRC2012: train's tar of tars, the flat validation set with its ground truth, ReaL's labels
synsets.py       which class has which number, by the devkit or by lists
cifar.py         CIFAR-10 and CIFAR-100, pickled and binary
oxford.py        Oxford-IIIT Pets, Oxford Flowers 102
vtab.py          lists of images and labels, a file a split: VTAB-1k
"""
