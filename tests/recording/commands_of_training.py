"""Cases of commands that train.

A line is a command without the word bbdm, or a step such as ``remove PATH``: see
:mod:`tests.recording.running`.
"""

from __future__ import annotations

from tests.recording.running import Case

FIT = "--preset demo -b 2 -e 1 --image_size 16 --device cpu --precision fp32 --lr_schedule constant"
BARE = "--preset demo -b 2 -e 1 --device cpu --precision fp32 --lr_schedule constant"
PAIRS = "'pairs/A/{split},pairs/B/{split}'"
WIDE = "'wide/{split}/A,wide/{split}/B'"
WIDE_VALUES = "--source_values 0:4000 --target_values -1024:3071:HU"
BANDS = "'S1/{split},S2/{split}'"
BAND_VALUES = "--source_values -25:0:dB,-32:-5:dB --target_values 0:10000"
SCANS = "'scans/{split}/*/mr,scans/{split}/*/ct,mask=scans/{split}/*/mask'"
SCAN_VALUES = "--source_values p0.5:99.5 --target_values -1024:3071:HU"
COLUMNS = "'data,sar=sar,style=labels.csv,text=text'"
SEEN = "--condition sar=image@0:51,style=class,text=tokens --drop style:0.2,text:0.1"
FEW = "--steps 2 --device cpu"

TRAIN: dict[str, tuple[str, ...]] = {
    "pairs, resumed, and its results": (
        f"train edge2shoes data t.pt {FIT}",
        "info t.pt",
        "info t.run",
        f"train edge2shoes data t.pt {FIT} -e 2",
        f"train edge2shoes data t.pt {FIT} -e 2",
        f"translate edge2shoes data t.pt results {FEW}",
    ),
    "resumed with other settings": (
        f"train edge2shoes data t.pt {FIT}",
        f"train edge2shoes data t.pt {FIT} -e 2 --loss l1",
        f"train paired {PAIRS} t.pt {FIT} -e 2",
        f"train edge2shoes data t.pt {FIT} -e 2 --overwrite --loss l1",
    ),
    "resumed from a damaged checkpoint": (
        f"train edge2shoes data t.pt {FIT} --save_every 1 --keep 3",
        "cut t.run/step_00000002.pt",
        f"train edge2shoes data t.pt {FIT} -e 2",
        f"train edge2shoes data t.pt {FIT} -e 2 --ckpt_path gone.pt",
    ),
    "many settings": (
        f"train paired {PAIRS} t.safetensors {FIT} --flip --shift 0.1 --grad_accumulation 2 --grad_clip 1 "
        "--warmup_steps 2 --lr_schedule cosine --weight_decay 0.01 --loss l1 --ema_decay 0.9 --seed 5",
    ),
    "bfloat16": (f"train paired {PAIRS} t.pt {FIT} --precision bf16",),
    "a cache of pictures": (
        f"train paired {PAIRS} t.pt {FIT} --cache_images cache",
        f"train paired {PAIRS} u.pt {FIT} --cache_images cache",
    ),
    "workers": (f"train paired {PAIRS} t.pt {FIT} --workers 1",),
    "grey": (
        f"train paired {PAIRS} t.pt {FIT} --channels 1",
        f"translate paired {PAIRS} t.pt results {FEW}",
    ),
    "from B to A": (f"train paired {PAIRS} t.pt {FIT} --direction BtoA",),
    "both ways": (
        f"train paired {PAIRS} t.pt {FIT} --direction both",
        "info t.pt",
        f"translate paired {PAIRS} t.pt back {FEW} --direction BtoA",
    ),
    "without validation": (f"train paired pairs/A/train,pairs/B/train t.pt {FIT}",),
    "crops": (
        f"train paired {PAIRS} t.pt {BARE} --crop 8:2",
        "info t.pt",
        f"translate folder large t.pt results {FEW}",
    ),
    "masks": (f"train paired 'pairs/A/{{split}},pairs/B/{{split}},mask=masks' t.pt {FIT}",),
    "a table": (
        f"train table 'table_{{split}}.csv' t.pt {FIT} --condition style=class",
        f"translate table 'table_{{split}}.csv' t.pt results {FEW}",
    ),
    "a table of datasets": (
        f"train hub hub t.pt {FIT} --condition style=class",
        f"translate hub hub t.pt results {FEW}",
        f"eval hub hub t.pt scores {FEW} --metrics psnr",
    ),
    "a stream": (
        f"train stream '{{split}}-*.tar' t.pt {FIT}",
        f"train stream '{{split}}-*.tar' t.pt {FIT} -e 2",
        f"translate stream '{{split}}-*.tar' t.pt results {FEW}",
    ),
    "conditions": (
        f"train edge2shoes {COLUMNS} t.pt {FIT} {SEEN}",
        "info t.pt",
        f"translate edge2shoes {COLUMNS} t.pt results {FEW} --guidance style=2",
        f"train edge2shoes data t2.pt {FIT} {SEEN}",
        f"train edge2shoes {COLUMNS} t2.pt {FIT} --condition sar=picture",
        f"train edge2shoes {COLUMNS} t2.pt {FIT} --condition sar=image --drop sea:0.1",
    ),
    "other values": (
        f"train paired {WIDE} t.pt {BARE} --crop 8 {WIDE_VALUES}",
        f"translate paired {WIDE} t.pt results {FEW}",
        f"eval paired {WIDE} t.pt scores {FEW} --metrics mae psnr ssim rmse",
        f"train paired {WIDE} t.pt {BARE} --crop 8 -e 2",
    ),
    "other values that are not named": (
        f"train paired {WIDE} t.pt {BARE} --crop 8",
        f"train paired {WIDE} t.pt {BARE} --crop 8 --source_values 0:4000",
        f"train paired {WIDE} t.pt {BARE} --crop 8 --source_values 4000 --target_values 0:1",
        f"train paired {WIDE} t.pt {BARE} --crop 8 --source_values 0:4000 --target_values p1:99",
        f"train paired {WIDE} t.pt {BARE} --crop 8 --source_values 0:1,0:1 --target_values 0:1",
        f"train paired {WIDE} t.pt {BARE} --crop 40 {WIDE_VALUES}",
    ),
    "floats": (
        f"train paired 'npy/A/{{split}},npy/B/{{split}}' t.pt {BARE} --crop 8 {WIDE_VALUES}",
    ),
    "bands with nodata": (
        f"train paired {BANDS} t.pt {BARE} --crop 8:2 {BAND_VALUES}",
        "info t.pt",
        f"translate folder S1/val t.pt results {FEW}",
        f"eval paired {BANDS} t.pt scores {FEW} --metrics mae ssim",
    ),
    "volumes by slices": (
        f"train paired {SCANS} t.pt {BARE} --slices axial:1 --crop 16 {SCAN_VALUES} --cache_images cache",
        "info t.pt",
        f"translate folder 'scans/val/*/mr' t.pt results {FEW}",
        f"eval paired {SCANS} t.pt scores {FEW} --metrics mae psnr dice",
    ),
    "volumes in 3-D": (
        f"train paired {SCANS} t.pt {BARE} --preset volume --crop 4x8x8 {SCAN_VALUES}",
        f"translate folder 'scans/val/*/mr' t.pt results {FEW}",
        f"eval paired {SCANS} t.pt scores {FEW} --metrics mae",
    ),
    "degraded pictures": (
        f"train folder pairs/A t.pt {FIT} --degrade photo",
        f"train folder pairs/A t.pt {FIT} --degrade blur -e 2",
        f"translate folder pairs/A t.pt results {FEW} --degrade sr4",
        f"eval folder pairs/A t.pt scores {FEW} --degrade jpeg@3 --metrics psnr",
        f"train folder pairs/A t.pt {FIT}",
        f"train folder pairs/A t.pt {FIT} --degrade fog",
        f"train edge2shoes data t.pt {FIT} --degrade sr4",
    ),
    "degraded crops": (f"train folder pairs/A t.pt {BARE} --crop 8:2 --degrade photo@2",),
    "without pairs": (
        f"train unpaired 'pairs/A/{{split}},other/{{split}}' t.pt {FIT} --simulation_steps 2 --pairing_steps 2 -e 2",
        f"translate unpaired 'pairs/A/{{split}},other/{{split}}' t.pt results {FEW}",
        f"translate folder other t.pt back {FEW} --direction BtoA",
        f"eval unpaired 'pairs/A/{{split}},other/{{split}}' t.pt scores {FEW} --metrics psnr",
        f"train unpaired 'pairs/A/{{split}},other/{{split}}' t2.pt {FIT} --loss l1",
        f"train edge2shoes data t2.pt {FIT} --eps 1",
    ),
    "bridges": tuple(
        f"train paired {PAIRS} {bridge}.pt {FIT} --bridge {bridge} --objective {objective} --density uniform"
        for bridge, objective in (
            ("abridge", "residual"),
            ("bbdm", "residual"),
            ("flow", "displacement"),
            ("ddbm-vp", "preconditioned"),
            ("ecsi", "preconditioned"),
            ("i2sb", "scaled"),
            ("goub", "noise"),
            ("flow", "pinned"),
        )
    ),
    "from the weights of another": (
        f"train paired {PAIRS} t.pt {FIT} --init_from seen.pt",
        f"train paired {PAIRS} u.pt {FIT} --init_from grey.pt",
        f"train paired {PAIRS} v.pt {FIT} --init_from text.pt",
        f"train paired {PAIRS} v.pt {FIT} --config demo",
    ),
    "latents": (
        f"train paired {PAIRS} t.pt {FIT} -vq vqgan.pt --cache_latents latents --normalize_latents",
        f"translate paired {PAIRS} t.pt results {FEW}",
        f"train paired {PAIRS} u.pt {FIT} --normalize_latents",
        f"train paired {PAIRS} u.pt {FIT} -vq c.pt",
    ),
    "a check of all pairs": (
        f"train paired {PAIRS} t.pt {FIT} --check",
        "cut pairs/A/train/01.png",
        "cut pairs/B/val/05.png",
        f"train paired {PAIRS} u.pt {FIT} --check",
        f"train paired {PAIRS} u.pt {FIT} --check --skip_bad",
    ),
    "a damaged picture": (
        "cut pairs/A/train/01.png",
        f"train paired {PAIRS} t.pt {FIT}",
        f"train paired {PAIRS} t.pt {FIT} --skip_bad",
    ),
    "a damaged volume": (
        "cut scans/train/p1/ct.mha",
        f"train paired {SCANS} t.pt {BARE} --slices axial --crop 16 {SCAN_VALUES}",
        f"train paired {SCANS} t.pt {BARE} --slices axial --crop 16 {SCAN_VALUES} --skip_bad",
    ),
    "data sets that are refused": (
        f"train shoes data t.pt {FIT}",
        f"train edge2shoes gone t.pt {FIT}",
        f"train paired pairs/A/train t.pt {FIT}",
        f"train paired pairs/A/train,pairs/B/val t.pt {FIT}",
        f"train folder own t.pt {FIT}",
        f"train hub gone-*.tar t.pt {FIT}",
        f"train table labels.csv t.pt {FIT}",
        f"train paired {SCANS} t.pt {FIT}",
        f"train paired {PAIRS} t.pt {FIT} --slices axial",
        f"train paired {BANDS} t.pt {FIT}",
    ),
    "flags that are refused": (
        "train",
        "train edge2shoes data",
        f"train edge2shoes data t.bin {FIT}",
        f"train edge2shoes data t.pt {FIT} --epoch 3",
        f"train edge2shoes data t.pt {FIT} --batch_sise 3",
        f"train edge2shoes data t.pt {FIT} -b 0",
        f"train edge2shoes data t.pt {FIT} -b two",
        f"train edge2shoes data t.pt {FIT} -b 2 --grad_accumulation 3",
        f"train edge2shoes data t.pt {FIT} -b 100",
        f"train edge2shoes data t.pt {FIT} -lr 0",
        f"train edge2shoes data t.pt {FIT} --image_size 15",
        f"train edge2shoes data t.pt {FIT} --image_size big",
        f"train edge2shoes data t.pt {FIT} --preset tiny",
        f"train edge2shoes data t.pt {FIT} --loss l3",
        f"train edge2shoes data t.pt {FIT} --crop 0",
        f"train edge2shoes data t.pt {FIT} --crop 8:x",
        f"train edge2shoes data t.pt {FIT} --slices across",
        f"train edge2shoes data t.pt {FIT} --device gpu",
        f"train edge2shoes data t.pt {FIT} --ckpt_path a.pt --init_from b.pt",
        f"train edge2shoes data t.pt {FIT} --source_as none --bridge nothing",
        f"train edge2shoes data t.pt {FIT} --experiment labels.csv",
        f"train edge2shoes data t.pt {FIT} --cache_images text",
    ),
    "distilled": (
        "distill seen.pt data s.pt -b 2 -e 1 --device cpu --calls 1 --precision fp32",
        "info s.pt",
        "translate edge2shoes data s.pt results --device cpu",
        "distill sizeless.pt data s2.pt -b 2 -e 1 --device cpu",
        "distill text.pt data s2.pt -b 2 -e 1 --device cpu",
    ),
    "an autoencoder": (
        "train-vqgan edge2shoes data v.pt --preset demo --image_size 16 -b 2 -e 1 --perceptual none "
        "--adversarial_weight 0 --device cpu --precision fp32",
        "convert-vqgan v.pt w.safetensors",
        "convert-vqgan c.pt w.pt",
        "convert-vqgan gone.pt w.pt",
        "convert-vqgan v.pt w.bin",
        "convert-vqgan v.pt w.pt -c 1",
    ),
}
CASES: dict[str, Case] = {f"train: {name}": lines for name, lines in TRAIN.items()}
