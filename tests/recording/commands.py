"""Cases of the command ``bbdm``: lines, each a command without its first word, or a step such as ``remove PATH``."""

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
    "grey": (f"train paired {PAIRS} t.pt {FIT} --channels 1", f"translate paired {PAIRS} t.pt results {FEW}"),
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
    "floats": (f"train paired 'npy/A/{{split}},npy/B/{{split}}' t.pt {BARE} --crop 8 {WIDE_VALUES}",),
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
TRANSLATE: dict[str, tuple[str, ...]] = {
    "again, and overwritten": (
        f"translate edge2shoes data c.pt results {FEW} -b 2",
        "remove results/05.png",
        f"translate edge2shoes data c.pt results {FEW}",
        f"translate edge2shoes data c.pt results {FEW} --steps 3",
        f"translate edge2shoes data c.pt results {FEW} --overwrite --seed 5",
    ),
    "several results and maps": (
        f"translate edge2shoes data c.pt results {FEW} -r 3",
        f"translate edge2shoes data c.pt maps {FEW} -r 3 --maps mean,std",
        f"translate edge2shoes data c.pt maps2 {FEW} --maps mean,std",
        f"translate edge2shoes data c.pt maps2 {FEW} -r 3 --maps median",
        f"translate edge2shoes data c.pt maps2 {FEW} --maps low,high",
    ),
    **{
        f"of {name}": (f"translate {words} c.pt results {FEW} --split {split}",)
        for name, words, split in (
            ("celeba", "celeba faces", "val"),
            ("cityscapes", "cityscapes city", "val"),
            ("train", "edge2shoes data", "train"),
            ("a missing split", "edge2shoes data", "test"),
            ("patients", f"paired {SCANS}", "val"),
        )
    },
    "of a folder, by sizes": (
        f"translate folder own c.pt fit {FEW}",
        f"translate folder own c.pt train {FEW} --size train",
        f"translate folder own c.pt keep {FEW} --size keep",
        f"translate folder own c.pt stretched {FEW} --size 20x8",
        f"translate folder own c.pt none {FEW} --size 0",
        f"translate folder own c.pt wrong {FEW} --size big",
    ),
    "solvers": (
        f"translate folder some/a.png c.pt none {FEW}",
        *(
            f"translate folder pairs/A c.pt {solver} --device cpu --solver {solver} --steps 2"
            for solver in ("ddim", "sde-dpm2m")
        ),
        *(
            f"translate folder pairs/A seen.pt {solver} --device cpu --solver {solver}"
            for solver in ("dpm2m", "mean", "posterior", "consistency")
        ),
        "translate folder pairs/A c.pt fast --device cpu --fast_sampling --solver ddim",
        "translate folder pairs/A c.pt fast --device cpu --fast_sampling --steps 3",
        "translate folder pairs/A c.pt zero --device cpu --steps 0",
        "translate folder pairs/A c.pt euler --device cpu --solver euler",
    ),
    "bfloat16": (f"translate folder pairs/A c.pt results {FEW} --dtype bf16",),
    "windows": (
        f"translate folder large crops.pt auto {FEW}",
        f"translate folder large c.pt w {FEW} --window 16 --overlap 0.5 --margin 2 -b 3",
        f"translate folder large c.pt w2 {FEW} --window 7",
        f"translate folder large c.pt w3 {FEW} --window big",
        f"translate folder large c.pt w4 {FEW} --window 16 --overlap 2",
        f"translate folder large crops.pt none {FEW} --window none",
    ),
    "little memory": (
        f"translate folder large seen.pt little {FEW} --window 16 --size keep --memory 600K -b 4",
        f"translate folder large seen.pt less {FEW} --window none --size keep --memory 10K",
        f"translate folder large seen.pt wrong {FEW} --memory much",
    ),
    "large pictures in files of other values": (
        f"translate folder wide/val/A wide_crops.pt w {FEW} --memory 300K -b 2",
        f"translate folder S1/val bands.pt b {FEW} --memory 400K -b 2",
    ),
    "damaged pictures": (
        f"translate folder some c.pt results {FEW}",
        f"translate folder some c.pt results {FEW} --skip_bad",
        "cut data/val/05.png",
        f"translate edge2shoes data c.pt pairs1 {FEW}",
        f"translate edge2shoes data c.pt pairs1 {FEW} --skip_bad",
    ),
    "other values": (
        f"translate folder wide/val/A wide.pt tif {FEW}",
        f"translate folder npy/A/val wide.pt npy {FEW} -r 2 --maps mean,std",
        f"translate paired {BANDS} bands.pt bands {FEW}",
        f"translate folder S2/val bands.pt other {FEW}",
        f"translate folder wide/val/A c.pt colours {FEW}",
        f"translate folder own wide.pt photos {FEW}",
        f"translate folder wide/val/A wide.pt changed {FEW} --source_values 0:100",
        f"translate folder wide/val/A wide.pt same {FEW} --source_values 0:4000",
    ),
    "volumes": (
        f"translate paired {SCANS} slices.pt slices {FEW} -r 2",
        f"translate folder 'scans/val/*/mr' slices.pt sources {FEW} --slices coronal",
        f"translate folder 'scans/val/*/mr' volume.pt blocks {FEW}",
        f"translate folder 'scans/val/*/mr' c.pt flat {FEW}",
        f"translate folder pairs/A volume.pt pictures {FEW}",
    ),
    "conditions": (
        f"translate edge2shoes {COLUMNS} told.pt results {FEW} --guidance 2",
        f"translate edge2shoes 'data,sar=sar,text=text' told.pt class {FEW} --condition style=b",
        f"translate edge2shoes 'data,sar=sar' told.pt without {FEW}",
        f"translate edge2shoes data told.pt missing {FEW}",
        f"translate edge2shoes {COLUMNS} told.pt unknown {FEW} --condition style=z",
        f"translate edge2shoes {COLUMNS} told.pt form {FEW} --condition style",
        f"translate edge2shoes data c.pt none {FEW} --condition style=a",
        f"translate edge2shoes data c.pt none {FEW} --guidance 2",
    ),
    "both ways": (
        f"translate edge2shoes data both.pt there {FEW}",
        f"translate edge2shoes data both.pt back {FEW} --direction BtoA",
        f"translate edge2shoes data c.pt turned {FEW} --direction BtoA",
        f"translate edge2shoes data both.pt wrong {FEW} --direction CtoD",
    ),
    "latents": (
        f"translate edge2shoes data latent.pt results {FEW}",
        f"translate edge2shoes data latent.pt twice {FEW} -vq vqgan.pt",
        f"translate edge2shoes data c.pt with {FEW} -vq vqgan.pt",
    ),
    "files of networks": (
        f"translate edge2shoes data c.safetensors results {FEW}",
        f"translate edge2shoes data sizeless.pt sized {FEW} --size 24",
        f"translate edge2shoes data pickled.model bare {FEW}",
        f"translate edge2shoes data pickled.model bare {FEW} -t 100 -l 1.5 --size 16",
        f"translate edge2shoes data gone.pt bad {FEW}",
        f"translate edge2shoes data damaged.pt bad {FEW}",
        f"translate edge2shoes data text.pt bad {FEW}",
        f"translate edge2shoes data vqgan.pt bad {FEW}",
        f"translate edge2shoes data pairs bad {FEW}",
    ),
    "folders of results": (
        f"translate folder own c.pt own {FEW} --overwrite",
        f"translate folder pairs/A/val c.pt pairs/A/val {FEW} --overwrite",
        f"translate folder own c.pt labels.csv {FEW}",
        f"translate folder own c.pt text {FEW}",
        f"translate folder nothing c.pt out1 {FEW}",
        f"translate folder gone c.pt out1 {FEW}",
        f"translate folder own c.pt {FEW}",
    ),
    "flags that are refused": (
        "translate",
        "translate own c.pt",
        f"translate folder own c.pt results {FEW} --seed -1",
        f"translate folder own c.pt results {FEW} -r 0",
        f"translate folder own c.pt results {FEW} -b 0",
        f"translate folder own c.pt results {FEW} --step 3",
        f"translate folder own c.pt results {FEW} --sampels 3",
        f"translate folder own c.pt results {FEW} --intervals gone.json --maps low",
        "translate folder own c.pt results --device gpu",
    ),
    "demo": ("demo out --steps 1 --device cpu", "demo out --steps 1 --device cpu"),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "eval: 8 bits": (
        f"eval edge2shoes data c.pt scores {FEW} --metrics psnr ssim mae rmse",
        f"eval edge2shoes data c.pt scores {FEW} --metrics psnr",
        f"eval edge2shoes data c.pt several {FEW} -r 2 --metrics psnr diversity energy crps",
        f"eval edge2shoes data c.pt single {FEW} --metrics diversity",
        f"eval edge2shoes data c.pt unknown {FEW} --metrics sharpness",
        f"eval edge2shoes data c.pt size {FEW} --metrics psnr --size keep",
    ),
    "eval: a sweep": (
        "eval edge2shoes data c.pt sweep --device cpu --sweep dpm2m:1,2 ddim:2 --metrics psnr",
        "eval edge2shoes data c.pt wrong --device cpu --sweep dpm2m:x --metrics psnr",
        "eval edge2shoes data c.pt wrong --device cpu --sweep dpm2m:2 --steps 3 --metrics psnr",
    ),
    "eval: masks": (
        f"eval paired 'pairs/A/{{split}},pairs/B/{{split}},mask=masks' c.pt scores {FEW} --metrics psnr ssim mae",
        f"eval table 'table_{{split}}.csv' c.pt table {FEW} --metrics psnr",
    ),
    "eval: other values": (
        f"eval paired {WIDE} wide.pt scores {FEW} --metrics mae psnr ssim",
        f"eval paired {BANDS} bands.pt bands {FEW} --metrics mae rmse",
        f"eval paired {SCANS} slices.pt slices {FEW} --metrics mae psnr dice --dice_above 0",
        f"eval paired {SCANS} slices.pt none {FEW} --metrics dice --dice_above 9000",
        f"eval paired {WIDE} wide.pt fid {FEW} --metrics fid",
    ),
    "eval: data sets that are refused": (
        f"eval folder own c.pt scores {FEW} --metrics psnr",
        f"eval edge2shoes gone c.pt scores {FEW} --metrics psnr",
        "cut data/val/05.png",
        f"eval edge2shoes data c.pt scores {FEW} --metrics psnr",
        f"eval edge2shoes data c.pt scores {FEW} --metrics psnr --skip_bad",
    ),
    "calibrate": (
        "calibrate seen.pt edge2shoes data --device cpu --steps 2 --bound conformal --alpha 0.4 --samples 3",
        "calibrate seen.pt edge2shoes data --device cpu --steps 2 --bound conformal --alpha 0.4 --samples 3",
        "translate edge2shoes data seen.pt ends --maps low,high,mean --device cpu",
        "translate folder own seen.pt ends1 --maps low,high,mean --device cpu",
        "translate folder own seen.pt ends2 --maps low --device cpu --steps 5",
        "translate folder own c.pt ends3 --maps low --device cpu --intervals seen.intervals.json",
        "calibrate c.pt edge2shoes data --device cpu --steps 2 --samples 3",
        "calibrate c.pt edge2shoes data --device cpu --steps 2 --samples 1",
        "calibrate c.pt edge2shoes data --device cpu --steps 2 --alpha 2",
        "calibrate seen.pt edge2shoes data --device cpu --steps 2 --bound conformal --alpha 0.4 --samples 3 --by std "
        "--overwrite -o by_std.json",
        f"calibrate wide.pt paired {WIDE} --device cpu --steps 2 --bound conformal --alpha 0.4 --samples 3 --split train",
        f"translate folder wide/val/A wide.pt ends4 {FEW} --maps low,high",
    ),
    "restore: photographs": (
        "restore own/wide.png own/high.jpg alpha/a.png formats/turned6.jpg -o out --model crops.pt --dtype fp32",
        "restore own/wide.png -o out --model crops.pt --dtype fp32",
        "restore own/wide.png -o out --model crops.pt --dtype fp32 --overwrite",
        "restore own -o two --model crops.pt --dtype fp32 --samples 2 --steps 2 --seed 3",
        "restore formats/grey.png formats/rgb8.tif formats/inks.jpeg formats/palette.png -o kinds --model crops.pt "
        "--dtype fp32",
    ),
    "restore: what is refused": (
        "restore",
        "restore some -o out --model crops.pt --dtype fp32",
        "restore gone.png labels.csv -o out1 --model crops.pt --dtype fp32",
        "restore nothing -o out1 --model crops.pt",
        "restore own/wide.png -o own --model crops.pt",
        "restore own/wide.png -o out1 --model gone.pt",
        "restore own/wide.png -o out1 --model crops.pt --steps 2",
        "restore own/wide.png -o out1 --model wide.pt --dtype fp32",
        "restore formats/grey16.png formats/geo.tif formats/volume.nii -o out2 --model crops.pt --dtype fp32",
        "restore own/deep/same.webp pairs/A/val/04.png pairs/B/val/04.png -o same --model crops.pt --dtype fp32",
    ),
    "restore: the bundled network": ("restore own/wide.png -o out --dtype fp32 --device cpu",),
    "info": (
        *(
            f"info {name}.pt"
            for name in ("c", "seen", "wide", "bands", "slices", "volume", "told", "both", "latent", "sizeless")
        ),
        "info c.safetensors",
        "info vqgan.pt",
        "info gone.pt",
        "info pairs",
        "info text.pt",
        "info damaged.pt",
        "info pickled.model",
        "info pickled.model -t 100 -l 2",
    ),
    "export: colours": (
        "export seen.pt onnx --solver sde-dpm2m --steps 2",
        "runtime onnx own/wide.png own/high.jpg -o out --seed 0",
        "runtime onnx own/wide.png -o more --seed 0 --steps 3 --solver ddim",
        "runtime onnx large/a.png -o windows --seed 0 --window 16",
        "runtime onnx gone.png -o bad --seed 0",
        "runtime onnx own/wide.png labels.csv -o bad --seed 0",
        "runtime onnx formats/grey16.png -o bad --seed 0",
        "runtime gone own/wide.png -o bad --seed 0",
        "export seen.pt onnx",
        "export text.pt onnx2",
        "export seen.pt onnx2 --dtype bf16",
        "export seen.pt onnx2 --quantize int8",
    ),
    "export: other values": (
        "export wide.pt onnx --steps 2",
        "runtime onnx wide/val/A/3.tif npy/A/val/4.npy -o out --seed 0",
        "export slices.pt slices --steps 2",
        "runtime slices scans/val/p3/mr.mha -o volumes --seed 0",
    ),
    "export: conditions": (
        "export told.pt onnx --steps 2",
        "runtime onnx own/deep/same.webp -o out --seed 0 --condition style=a --condition text=text/03.npy "
        "--condition sar=sar.npy",
        "runtime onnx own/deep/same.webp -o out --seed 0 --condition sar=formats/uint8.npy --condition style=a",
        "runtime onnx own/deep/same.webp -o out --seed 0 --condition style=z",
        "runtime onnx own/deep/same.webp -o out --seed 0 --condition style",
    ),
    "help": (
        "--help",
        "--version",
        "nothing",
        *(f"{name} --help" for name in ("train", "translate", "eval", "calibrate", "restore", "info", "export", "distill")),
        "train --preset demo --help",
        "--import no_such_module info c.pt",
    ),
}
CASES: dict[str, Case] = {
    **{f"train: {name}": lines for name, lines in TRAIN.items()},
    **{f"translate: {name}": lines for name, lines in TRANSLATE.items()},
    **OTHERS,
}
