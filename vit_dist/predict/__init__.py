"""What a trained model says of images: labels by name, with probabilities, for files, folders, manifests and URLs.

images.py        which images places name, and what is known of their classes; no torch
classifier.py    a model with its weights, ready to be asked
run.py           images through a model, in batches
report.py        a table, CSV, JSON, and accuracy class by class; no torch
grid.py          a picture of images with their predictions
"""
