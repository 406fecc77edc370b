"""Cases of commands that use a trained network; lines as in :mod:`tests.recording.commands_of_training`."""

from __future__ import annotations

from tests.recording.commands_of_training import BANDS, COLUMNS, FEW, SCANS, WIDE
from tests.recording.running import Case

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
        f"translate edge2shoes data sizeless.pt sized {FEW} --size 24",
        f"translate edge2shoes data pickled.model bare {FEW}",
        f"translate edge2shoes data pickled.model bare {FEW} -t 100 -l 1.5 --size 16",
        f"translate edge2shoes data gone.pt bad {FEW}",
        f"translate edge2shoes data damaged.pt bad {FEW}",
        f"translate edge2shoes data text.pt bad {FEW}",
        f"translate edge2shoes data vqgan.pt bad {FEW}",
        f"translate edge2shoes data pairs bad {FEW}",
    ),
    "a network of safetensors": (
        "info c.safetensors",
        f"translate edge2shoes data c.safetensors results {FEW}",
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
        f"calibrate wide.pt paired {WIDE} --device cpu --steps 2 --bound conformal --alpha 0.4 --samples 3 "
        "--split train",
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
            for name in (
                "c",
                "seen",
                "wide",
                "bands",
                "slices",
                "volume",
                "told",
                "both",
                "latent",
                "sizeless",
            )
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
        *(
            f"{name} --help"
            for name in (
                "train",
                "translate",
                "eval",
                "calibrate",
                "restore",
                "info",
                "export",
                "distill",
            )
        ),
        "train --preset demo --help",
        "--import no_such_module info c.pt",
    ),
}
CASES: dict[str, Case] = {
    **{f"translate: {name}": lines for name, lines in TRANSLATE.items()},
    **OTHERS,
}
