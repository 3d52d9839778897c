"""`vit-dist models` and `compare` where the command line itself is wrong, and what `show` says."""

from __future__ import annotations

import pytest

from vit_dist.cli import compare, models
from vit_dist.core.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("list --image-size 0", "--image-size=0: at least 1"),
        ("list --num-classes -5", "--num-classes=-5: at least 1"),
        ("show ViT-B/16 --image-size -224", "--image-size=-224: at least 1"),
        ("show ViT-B/16 --image-size 225", "image_size=225 does not divide into the 16-pixel .*: 224, 240"),
        ("show ViT-B/16 num_heads=7", "model ViT-B/16: width=768 is not divisible by num_heads=7; heads .*: 1, 2, 3"),
        ("show ViT-B/16 pol=map", "model ViT-B/16: pol: unknown key; did you mean 'pool'"),
        ("show ViT-B/16 name=ViT-L/16", "cannot rename the model"),
        ("show timm:resnet50", "has BatchNorm"),
        ("export vit-demo a.npz --num-classes -3", "--num-classes=-3: at least 1"),
        ("export vit-demo a.npz --seed -1", "--seed=-1: at least 0"),
        ("export s3://key:secret@bucket/a.npz b.npz --seed 1", r"--seed is for fresh .*s3://key:\*\*\*@bucket/a.npz"),
        ("export runs/b16 a.npz", "runs/b16: no checkpoint, run or file is there, and no model"),
        ("import a.npz b.npz --model vit-demo --head new --num-classes 0", "--num-classes=0: at least 1"),
    ],
)
def test_a_mistaken_call_is_refused_with_what_would_be_right(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        models.main(arguments.split())


def test_a_model_of_timm_is_shown_with_its_counted_cost(capsys: pytest.CaptureFixture[str]) -> None:
    models.main(["show", "timm:vit_tiny_patch16_224", "--tensors"])
    theirs = capsys.readouterr().out
    models.main(["show", "ViT-Ti/16"])
    ours = capsys.readouterr().out
    said = "5,717,416 parameters with 1,000 classes; 1.25 GMACs for one 224x224 image"
    assert said in ours
    assert said in theirs
    assert "net.blocks.11.mlp.fc2.weight" in theirs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--models ,", "--models: at least one name"),
        ("--models vit-dmo", "unknown model 'vit-dmo'; did you mean 'vit-demo'"),
        ("--models vit-demo,bit-demo --image-size 30", "image_size=30 does not divide into the 7-pixel patches"),
        ("--image-size 0", "--image-size=0: at least 1"),
        ("--batch 0", "--batch=0: at least 1"),
        ("--mfu 1.1", "--tflops=312.0 --mfu=1.1: a peak above 0 and a fraction"),
        ("--mfu nan", "a fraction of it up to 1"),
        ("--tflops inf", "a peak above 0"),
        ("--device h10", "--device 'h10' is not known; did you mean 'h100'"),
        ("--device b200 --precision fp32", "--device b200: its peak in fp32 is not known; give --tflops"),
        ("--examples 0", "--examples=0: at least 1"),
        ("--examples 1e19", "at most 1e18"),
        ("--examples 1e400", "expected a count"),
        ("--match throughput --no-measure", "--match throughput needs a measurement"),
        ("--models vit-demo,ViT-Ti/16 --match flops", "of family 'vit' and of another; these are of vit"),
        ("--figure costs", r"--figure=costs: its ending must be one of \.png"),
    ],
)
def test_a_mistaken_comparison_is_refused_before_anything_is_counted(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare.main(arguments.split())
