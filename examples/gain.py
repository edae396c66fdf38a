"""Does pre-training on SpRel + AbsPos beat supervised pre-training of the same length, where labels are few?

    python sweeps/ablation.py --study examples/gain.py --recipe cpu --data-root data --seeds 0,1,2,3,4,5,6,7,8,9

docs/studies/gain.md says why it is as it is, and what came out. CIFAR-10, a ViT that two cores can pay, 5,000 images
of which 500 have a label. The learning rates of each arm are those that its pilot chose.
"""

COMMON = {
    "dataset": "cifar10",
    "backbone": "vit_xs8",
    "protocol": "pretrain_finetune",
    "train_images": 5000,
    "labels_per_class": 50,
    "batch_size": 32,
    "epochs": 50,  # 800 steps on the images with a label
    "warmup_epochs": 5,
    "learning_rate": 1e-3,
    "selection": "last",
    "val_share": 0.0,
}

cells = [
    # 3,200 steps on the images with a label
    COMMON
    | {
        "tasks": "none",
        "pretrain_epochs": 200,
        "pretrain_learning_rate": 1e-3,
        "pretrain_position_embedding": True,
    },
    # 3,140 steps on all images
    COMMON | {"tasks": "sprel+abspos", "pretrain_epochs": 20, "pretrain_learning_rate": 2e-3},
]
