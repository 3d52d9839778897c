"""Weights in and out: published forms and ours. A state is a dict of a model's parameters by our names.

google.py        names and layouts of google-research's .npz files (ViT, hybrid, BiT)
huggingface.py   a folder that `ViTForImageClassification` loads
timm_form.py     what timm's own models load

forms.py         which form a name stands for, and what is refused before anything is opened; no torch
files.py         reading and writing each form
opened.py        what a file says it holds, before a value is read; promised.py: tensors that are not read yet
torch_file.py    files of torch, whose pickle is read as data by pickles.py
described.py     what a file says of its model, and the limits of that
viewed.py        how images go in, and what logits mean; colours.py: images in the colours of other weights
names.py         prefixes of wrappers, and which names belong to a head
numbers.py       any real dtype to float32
adapt.py         making a state fit a model of another image size or other classes
"""
