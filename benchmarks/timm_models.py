"""Which models of timm are backbones: each is trained for one epoch of SpRel + AbsPos, or refused with the reason.

python benchmarks/timm_models.py              some thirty names of twenty families, on random images of 64 pixels
python benchmarks/timm_models.py NAME ...     these
"""

import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tempfile

import numpy as np

from relvit.cell import make_cell
from relvit.data import Dataset, Split
from relvit.paper import section_3_1
from relvit.specs import backbone_spec
from relvit.train import train

SIZE = 64
NAMES = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "cait_xxs24_224", "xcit_nano_12_p16_224"),
    *("pvt_v2_b0", "twins_svt_small", "nest_tiny", "visformer_tiny", "volo_d1_224", "tnt_s_patch16_224"),
    *("hiera_tiny_224", "davit_tiny", "focalnet_tiny_srf", "mvitv2_tiny", "poolformer_s12", "coatnet_nano_rw_224"),
    *("convnext_atto", "convnextv2_atto", "resnet10t", "efficientnet_b0", "mobilenetv3_small_050", "mobilevit_xxs"),
    *("mixer_s16_224", "gmlp_s16_224", "resmlp_12_224", "eva02_tiny_patch14_224", "levit_128s", "pit_ti_224"),
    *("coat_tiny", "crossvit_tiny_240", "efficientformer_l1"),
)


def random_images(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    return Split(images, np.arange(count), np.arange(count) % 2)


def main(names: tuple[str, ...] = NAMES) -> int:
    data = Dataset("noise", SIZE, ("a", "b"), (0.5,) * 3, (0.25,) * 3, random_images(40, 0), None, random_images(10, 1))
    print("| model | grid | D | parameters | one epoch of SpRel + AbsPos, one of fine-tuning |")
    print("| --- | --- | --- | --- | --- |")
    trained = 0
    for name in names:
        backbone, started = f"timm/{name}", time.monotonic()
        try:
            spec = backbone_spec(backbone, SIZE)
        except ValueError as error:
            print(f"| {name} | | | | refused: {error} |", flush=True)
            continue
        fields = section_3_1(backbone, SIZE) | {
            "dataset": "noise", "pretrain_dataset": "noise", "backbone": backbone, "image_size": SIZE, "seed": 0,
            "protocol": "pretrain_finetune", "tasks": "sprel+abspos", "batch_size": 10, "pretrain_epochs": 1,
            "epochs": 1, "warmup_epochs": 0,
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            rows = list(train(make_cell(**fields), data, Path(folder)))
        side = SIZE // spec.patch_size
        losses = f"loss {rows[0]['pretrain_train_sprel_loss']:.2f} and {rows[0]['pretrain_train_abspos_loss']:.2f}"
        seconds = time.monotonic() - started
        print(
            f"| {name} | {side} x {side} | {spec.dim} | {spec.parameters:,} | {losses}; {seconds:.0f} s |", flush=True
        )
        trained += 1
    print(f"\n{trained} of {len(names)} trained")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tuple(sys.argv[1:]) or NAMES))
